//! The driver on a FUSE mount whose server stands in this process: what distributed stores do, without one.
//!
//! Checks: direct requests do not hold the loop's thread while the store takes its time, and are in flight
//! together, reads, writes in place and allocating writes; zeros are zeros though the server lies, by both
//! backends, buffered and direct, and an honest server's fallocate is used; a proof leaves nothing behind; a
//! server that goes away ends the writing of its images; a store without locks says what to do.

mod server;

use fuser::Errno;
use quod::{BackendKind, Buffer, Config, DiskId, Driver, Error, ErrorKind, Format, OpenOptions, Request};
use server::{Serves, Store};
use std::time::{Duration, Instant};

const SIZE: u64 = 4 << 20;
const DELAY: Duration = Duration::from_millis(50);

fn driver(backend: BackendKind) -> Driver {
    Driver::new(Config::default().backend(backend)).unwrap()
}

/// Waits for the next thing that ends.
fn ended(driver: &mut Driver) -> quod::Completion {
    let began = Instant::now();
    loop {
        if let Some(done) = driver.next_completion() {
            return done;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "nothing completes");
        driver.wait(Some(Duration::from_secs(1))).unwrap();
    }
}

fn open(driver: &mut Driver, store: &Store, options: OpenOptions) -> Result<DiskId, Error> {
    let disk = driver.open(store.path("disk"), options.write(true)).unwrap();
    ended(driver).result.map(|()| disk)
}

fn run(driver: &mut Driver, disk: DiskId, request: Request) -> Result<quod::Completion, Error> {
    driver.submit(disk, request).map_err(|rejected| Error::from(rejected.reason))?;
    let done = ended(driver);
    done.result.clone().map(|()| done)
}

fn write(driver: &mut Driver, disk: DiskId, offset: u64, byte: u8, len: usize) -> Result<(), Error> {
    run(driver, disk, Request::write(offset, Buffer::from(&vec![byte; len][..]), 0)).map(drop)
}

/// Forty requests of 4 KiB, eight at a time, 64 KiB apart: how long all took, and the longest call.
fn forty(store: &Store, format: Format, backend: BackendKind, writes: bool) -> (Duration, Duration) {
    let mut driver = driver(backend);
    let options = OpenOptions::new().format(Some(format)).direct(true);
    let disk = open(&mut driver, store, options).unwrap();
    store.state().delay = DELAY;
    let (mut sent, mut out, mut done, mut longest) = (0, 0, 0, Duration::ZERO);
    let began = Instant::now();
    while done < 40 {
        let call = Instant::now();
        while sent < 40 && out < 8 {
            let (offset, buffer) = (sent * 65536, Buffer::from(&[sent as u8 | 1; 4096][..]));
            let request = match writes {
                true => Request::write(offset, buffer, sent),
                false => Request::read(offset, buffer, sent),
            };
            driver.submit(disk, request).map_err(|rejected| rejected.reason).unwrap();
            (sent, out) = (sent + 1, out + 1);
        }
        driver.turn().unwrap();
        longest = longest.max(call.elapsed());
        while let Some(completion) = driver.next_completion() {
            completion.result.unwrap();
            (out, done) = (out - 1, done + 1);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let elapsed = began.elapsed();
    store.state().delay = Duration::ZERO;
    run(&mut driver, disk, Request::close(0)).unwrap();
    (elapsed, longest)
}

fn image(format: Format, size: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    quod_tools::create(&path, &quod_tools::CreateOptions::new(format, size)).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn the_loop_goes_on_while_the_store_takes_its_time() {
    for serves in [Serves::Plainly, Serves::AsyncDirect] {
        for backend in [BackendKind::Uring, BackendKind::Threads] {
            for (format, writes) in [(Format::Raw, false), (Format::Raw, true), (Format::Qcow2, true)] {
                let store = Store::mount(serves);
                store.put("disk", image(format, 8 << 20));
                let (elapsed, longest) = forty(&store, format, backend, writes);
                let story = format!("{serves:?}, {backend:?}, {format:?}, writes {writes}: {elapsed:?}");
                println!("{story}, longest call {longest:?}");
                assert!(longest < DELAY / 2, "the thread was held for {longest:?}: {story}");
                // the kernel sends writes one by one unless they are a ring's and the server may be asked
                // for several; one after the other forty take 2 s
                if !writes || (backend, serves) == (BackendKind::Uring, Serves::AsyncDirect) {
                    assert!(elapsed < DELAY * 20, "not in flight together: {story}");
                }
            }
        }
    }
}

#[test]
fn zeros_are_zeros_though_the_server_lies() {
    for backend in [BackendKind::Uring, BackendKind::Threads] {
        for format in [Format::Raw, Format::Qed, Format::Qcow2] {
            for direct in [false, true] {
                let store = Store::mount(Serves::Plainly);
                store.put("disk", image(format, SIZE));
                store.state().lies = true;
                let mut driver = driver(backend);
                let options = OpenOptions::new().format(Some(format)).direct(direct);
                let disk = open(&mut driver, &store, options).unwrap();
                write(&mut driver, disk, 0, 7, 1 << 20).unwrap();
                run(&mut driver, disk, Request::write_zeroes(65536, 65536, 0)).unwrap();
                run(&mut driver, disk, Request::write_zeroes(4096, 512, 0).may_unmap()).unwrap();
                run(&mut driver, disk, Request::flush(0)).unwrap();
                let done = run(&mut driver, disk, Request::read(0, Buffer::zeroed(1 << 20), 0)).unwrap();
                let Some(quod::Buffers::Owned(buffer)) = done.kind.into_buffers() else { panic!() };
                let mut want = vec![7; 1 << 20];
                want[65536..131_072].fill(0);
                want[4096..4608].fill(0);
                let wrong = buffer.as_slice().iter().zip(&want).position(|(is, was)| is != was);
                assert_eq!(wrong, None, "{backend:?}, {format:?}, direct {direct}");
                run(&mut driver, disk, Request::close(0)).unwrap();
            }
        }
    }
}

#[test]
fn an_honest_server_is_believed_once_it_has_shown_it() {
    let store = Store::mount(Serves::Plainly);
    store.put("disk", vec![9; SIZE as usize]);
    let mut driver = driver(BackendKind::Auto);
    let raw = OpenOptions::new().format(Some(Format::Raw));
    let reader = driver.open(store.path("disk"), raw.clone()).unwrap();
    ended(&mut driver).result.unwrap();
    assert_eq!(store.state().fallocates, [0; 0], "nothing is tried for who only reads");
    run(&mut driver, reader, Request::close(0)).unwrap();
    let disk = open(&mut driver, &store, raw.clone()).unwrap();
    let tried = std::mem::take(&mut store.state().fallocates);
    assert!(tried.contains(&libc::FALLOC_FL_ZERO_RANGE), "{tried:?}");
    assert_eq!(store.bytes("disk"), vec![9; SIZE as usize], "the image is not touched");
    run(&mut driver, disk, Request::write_zeroes(0, 1 << 20, 0)).unwrap();
    assert_eq!(store.state().fallocates, [libc::FALLOC_FL_ZERO_RANGE]);
    assert!(store.bytes("disk")[..1 << 20].iter().all(|byte| *byte == 0));
    // a second file there: it is known what the store's answers are worth
    store.put("other", vec![9; SIZE as usize]);
    store.state().fallocates.clear();
    let other = driver.open(store.path("other"), raw.write(true)).unwrap();
    ended(&mut driver).result.unwrap();
    assert_eq!(store.state().fallocates, [0; 0], "once a file system");
    run(&mut driver, other, Request::write_zeroes(0, 4096, 0)).unwrap();
    assert_eq!(store.state().fallocates, [libc::FALLOC_FL_ZERO_RANGE]);
    for disk in [disk, other] {
        run(&mut driver, disk, Request::close(0)).unwrap();
    }
    let names: Vec<_> =
        std::fs::read_dir(store.folder()).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(names, ["disk", "other"], "nothing is left of the proof");
}

#[test]
fn a_server_that_goes_away_ends_the_writing_of_its_images() {
    for (backend, direct) in
        [(BackendKind::Uring, true), (BackendKind::Threads, true), (BackendKind::Uring, false)]
    {
        let store = Store::mount(Serves::Plainly);
        store.put("disk", image(Format::Qcow2, SIZE));
        let mut driver = driver(backend);
        let options = OpenOptions::new().format(Some(Format::Qcow2)).direct(direct);
        let disk = open(&mut driver, &store, options.clone()).unwrap();
        write(&mut driver, disk, 0, 5, 65536).unwrap();
        run(&mut driver, disk, Request::flush(0)).unwrap();
        store.state().gone = Some(Errno::ENOTCONN);
        let error = write(&mut driver, disk, 0, 6, 4096)
            .and_then(|()| run(&mut driver, disk, Request::flush(0)).map(drop));
        assert_eq!(error.unwrap_err().errno(), libc::ENOTCONN);
        store.state().gone = None;
        let poisoned = driver.poisoned(disk).map(|error| error.errno());
        assert_eq!(poisoned, Some(libc::ENOTCONN));
        let syncs = store.state().syncs;
        for request in [Request::flush(0), Request::write(0, Buffer::zeroed(512), 0)] {
            let error = run(&mut driver, disk, request).unwrap_err();
            assert_eq!(error.kind(), Some(&ErrorKind::Poisoned));
        }
        assert_eq!(store.state().syncs, syncs, "a sync that succeeds would prove nothing");
        assert!(run(&mut driver, disk, Request::close(0)).is_err());
        let disk = open(&mut driver, &store, options).unwrap();
        write(&mut driver, disk, 65536, 8, 65536).unwrap();
        run(&mut driver, disk, Request::close(0)).unwrap();
    }
}

#[test]
fn a_store_without_locks_says_what_to_do() {
    let store = Store::mount(Serves::NoLocks);
    store.put("disk", vec![0; SIZE as usize]);
    let mut driver = driver(BackendKind::Auto);
    let raw = OpenOptions::new().format(Some(Format::Raw));
    let error = open(&mut driver, &store, raw.clone()).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSYS);
    let text = error.to_string();
    assert!(text.contains("no locks") && text.contains("lock(false)"), "{text}");
    let disk = open(&mut driver, &store, raw.lock(false)).unwrap();
    write(&mut driver, disk, 0, 1, 512).unwrap();
    run(&mut driver, disk, Request::close(0)).unwrap();
}
