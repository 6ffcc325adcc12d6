//! QEMU as a judge of what a power cut leaves.
//!
//! Checks: of every scenario a few crash images, before any repair: `qemu-img check` finds no corruption
//! (leaks may be there), and `qemu-img convert` reads, sector by sector, what the model allows. A qcow2 image
//! whose dirty bit says that refcounts may be wrong is repaired by QEMU first, as QEMU does when it opens it
//! for writing; QED is sound without, need-check or not. A reading with one other byte is not allowed.

use quod_fuzz::explore::scenario::Scenario;
use quod_fuzz::explore::{crash_samples, scenario};
use quod_fuzz::image::is_marked;
use quod_fuzz::world::Ask;
use std::path::Path;
use std::process::{Command, Output};

/// Images of a scenario.
const IMAGES: usize = 4;

fn qemu_img(folder: &Path, args: &[&str]) -> Output {
    let command = Command::new("qemu-img").current_dir(folder).args(args).output();
    command.unwrap_or_else(|error| panic!("qemu-img is needed: {error}"))
}

/// What QEMU reads of it; an image that says so is repaired first.
fn judged(folder: &Path, format: &str, marked: bool) -> Result<Vec<u8>, String> {
    let text = |out: &Output| {
        format!(
            "{:?}: {}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        )
    };
    if marked {
        let out = qemu_img(folder, &["check", "-q", "-r", "all", "-f", format, "top"]);
        // 0: nothing left; 3: leaks are left
        if !matches!(out.status.code(), Some(0 | 3)) {
            return Err(format!("check -r all: {}", text(&out)));
        }
    }
    let out = qemu_img(folder, &["check", "-f", format, "top"]);
    if !matches!(out.status.code(), Some(0 | 3)) {
        return Err(format!("check: {}", text(&out)));
    }
    let out = qemu_img(folder, &["convert", "-f", format, "-O", "raw", "top", "raw"]);
    if !out.status.success() {
        return Err(format!("convert: {}", text(&out)));
    }
    std::fs::read(folder.join("raw")).map_err(|error| error.to_string())
}

#[test]
fn qemu_finds_crash_images_sound_and_reads_what_is_allowed() {
    let (mut images, mut found) = (0, Vec::new());
    // which of both disks an image has whose power went while a snapshot was applied, the explorer asks the
    // image; what is allowed here is one disk
    let applies = |scenario: &Scenario| scenario.asks.iter().any(|ask| matches!(ask, Ask::Apply { .. }));
    let sound = |scenario: &Scenario| scenario.is_sound() && !applies(scenario);
    for scenario in scenario::all().into_iter().filter(sound).map(Scenario::for_qemu) {
        let format = scenario.format().name();
        let outcome = crash_samples(&scenario, IMAGES, &mut |sim, allowed| {
            let folder = tempfile::tempdir().unwrap();
            for path in sim.paths() {
                let path = std::str::from_utf8(path).unwrap();
                std::fs::write(folder.path().join(path), sim.file_bytes(path)).unwrap();
            }
            images += 1;
            let marked = format == "qcow2" && is_marked(&sim.file_range("top", 0, 512));
            let verdict = judged(folder.path(), format, marked);
            let verdict = verdict.and_then(|mut bytes| {
                allowed(&bytes).map_err(|failure| failure.0)?;
                bytes[0] ^= 0x55;
                match allowed(&bytes) {
                    Ok(()) => Err("anything is allowed".to_string()),
                    Err(_) => Ok(()),
                }
            });
            if let Err(what) = verdict {
                found.push(format!("{}: {what}", scenario.name));
            }
        });
        outcome.unwrap_or_else(|failure| panic!("{}: {failure}", scenario.name));
    }
    println!("{images} images");
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(images > 200, "{images} images");
}
