//! Who has locked a file, as far as this user may see it: /proc tells of each open file what locks it has.
//! (/proc/locks names no process for the locks of open file descriptions, which images have.)
//!
//! Knows: /proc. Must never know: which locks an image takes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Processes that are told of, at most.
const TOLD: usize = 4;

/// Processes that hold a lock of this file: name and number.
pub fn holders(path: &Path) -> Vec<String> {
    let Ok(file) = fs::metadata(path) else { return Vec::new() };
    // as the kernel writes it: major, minor, inode
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = std::process::id();
    numbers.filter(|pid| *pid != own && has_lock(*pid, &wanted)).take(TOLD).map(tell).collect()
}

fn has_lock(pid: u32, wanted: &str) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    open.flatten().any(|entry| {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let locks = text.lines().filter(|line| line.starts_with("lock:"));
        locks.flat_map(str::split_whitespace).any(|word| word == wanted)
    })
}

fn tell(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{} (process {pid})", name.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_lock_is_not_told_of() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(holders(file.path()), [""; 0]);
        assert_eq!(holders(Path::new("/no/such/file")), [""; 0]);
    }
}
