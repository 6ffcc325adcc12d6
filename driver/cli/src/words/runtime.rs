//! qcow2's options of an opening: sizes of caches, refcounts, discards, checks of what is overwritten.
//!
//! Knows: their names, QEMU's rules and words about them. Must never know: how the driver caches.
//! None of them changes what a guest reads: quod keeps one budget for tables (`cache_bytes`), its checks of
//! what it overwrites are always on, and postponed refcounts are a permission that it need not use.

use super::sizes;
use quod_tools::ImageInfo;

/// QEMU's budget for L2 tables if nothing is said.
const L2_DEFAULT: u64 = 32 << 20;
/// Clusters of its cache for refcounts at least.
const REFCOUNTS_LEAST: u64 = 4;
/// Entries of a cache at most.
const ENTRIES_MAX: u64 = i32::MAX as u64;

const SWITCHES: &[&str] = &[
    "pass-discard-request",
    "pass-discard-snapshot",
    "pass-discard-other",
    "overlap-check.main-header",
    "overlap-check.active-l1",
    "overlap-check.active-l2",
    "overlap-check.refcount-table",
    "overlap-check.refcount-block",
    "overlap-check.snapshot-table",
    "overlap-check.inactive-l1",
    "overlap-check.inactive-l2",
    "overlap-check.bitmap-directory",
];

/// What was said. None: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    cache: Option<u64>,
    l2: Option<u64>,
    refcounts: Option<u64>,
    entry: Option<u64>,
    clean_interval: Option<u64>,
    lazy: Option<bool>,
    overlap: Option<String>,
    template: Option<String>,
}

impl Runtime {
    /// Takes an option. None: it is none of these.
    pub fn set(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        let number = match name {
            "cache-size" => Some(&mut self.cache),
            "l2-cache-size" => Some(&mut self.l2),
            "refcount-cache-size" => Some(&mut self.refcounts),
            "l2-cache-entry-size" => Some(&mut self.entry),
            _ => None,
        };
        if let Some(number) = number {
            return Some(sizes::option(name, value).map(|value| *number = Some(value)));
        }
        let done = match name {
            "cache-clean-interval" => interval(value).map(|value| self.clean_interval = Some(value)),
            "lazy-refcounts" => switch(name, value).map(|value| self.lazy = Some(value)),
            "discard-no-unref" => match switch(name, value) {
                Ok(true) => Err(format!("{name}=on is not supported")),
                other => other.map(drop),
            },
            "overlap-check" => {
                self.overlap = Some(value.to_string());
                Ok(())
            }
            "overlap-check.template" => {
                self.template = Some(value.to_string());
                Ok(())
            }
            _ if SWITCHES.contains(&name) => switch(name, value).map(drop),
            _ => return None,
        };
        Some(done)
    }

    /// Do they suit this qcow2 image? Answers the bytes for tables, if something was said about them.
    pub fn fit(&self, image: &ImageInfo) -> Result<Option<u64>, String> {
        let Some(facts) = image.qcow2.as_deref() else { return Ok(None) };
        let entry_bytes = if facts.extended_l2 { 16 } else { 8 };
        let cluster = u64::from(image.info.cluster_size);
        let tables = self.caches(cluster, image.info.virtual_size, entry_bytes)?;
        if self.clean_interval.is_some_and(|seconds| seconds > u64::from(u32::MAX)) {
            return Err("Cache clean interval too big".into());
        }
        match self.lazy {
            Some(true) if image.info.version < 3 => {
                let words = "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level";
                return Err(words.into());
            }
            Some(false) if facts.lazy_refcounts => {
                return Err("lazy-refcounts=off is not supported for an image with lazy refcounts".into());
            }
            _ => {}
        }
        self.overlaps()?;
        Ok((self.cache.is_some() || self.l2.is_some()).then_some(tables))
    }

    /// QEMU's rules about its caches; the bytes of the one for L2 tables.
    fn caches(&self, cluster: u64, size: u64, entry_bytes: u64) -> Result<u64, String> {
        let most = (size.div_ceil(cluster) * entry_bytes).next_multiple_of(cluster);
        let mut l2 = most.min(self.l2.unwrap_or(L2_DEFAULT));
        let mut refcounts = self.refcounts.unwrap_or(0);
        if let Some(cache) = self.cache {
            if self.l2.is_some() && self.refcounts.is_some() {
                let words =
                    "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time";
                return Err(words.into());
            }
            if self.l2.is_some_and(|l2| l2 > cache) {
                return Err("l2-cache-size may not exceed cache-size".into());
            }
            if refcounts > cache {
                return Err("refcount-cache-size may not exceed cache-size".into());
            }
            (l2, refcounts) = match (self.l2, self.refcounts) {
                (Some(_), _) => (l2, cache - l2),
                (None, Some(refcounts)) => (cache - refcounts, refcounts),
                (None, None) => {
                    let rest = cache.saturating_sub(most).max(cache.min(REFCOUNTS_LEAST * cluster));
                    (cache - rest, rest)
                }
            };
        }
        let entry = self.entry.unwrap_or(if l2 < most { cluster.min(4096) } else { cluster });
        if !(512..=cluster).contains(&entry) || !entry.is_power_of_two() {
            let words = "L2 cache entry size must be a power of two between 512 and the cluster size";
            return Err(format!("{words} ({cluster})"));
        }
        if l2 / entry > ENTRIES_MAX {
            return Err("L2 cache size too big".into());
        }
        if refcounts / cluster > ENTRIES_MAX {
            return Err("Refcount cache size too big".into());
        }
        Ok(l2.min(most))
    }

    fn overlaps(&self) -> Result<(), String> {
        if let (Some(one), Some(other)) = (&self.overlap, &self.template)
            && one != other
        {
            return Err(format!(
                "Conflicting values for qcow2 options 'overlap-check' ('{one}') and 'overlap-check.template' \
                 ('{other}')"
            ));
        }
        match self.overlap.as_deref().or(self.template.as_deref()) {
            None | Some("none" | "constant" | "cached" | "all") => Ok(()),
            Some(other) => Err(format!(
                "Unsupported value '{other}' for qcow2 option 'overlap-check'. Allowed are any of the \
                 following: none, constant, cached, all"
            )),
        }
    }
}

/// `on` or `off`.
pub fn switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
    }
}

/// Seconds; a negative number is a large one, as in C.
fn interval(value: &str) -> Result<u64, String> {
    let signed = value.parse::<i64>().map(|value| value as u64);
    signed
        .or_else(|_| value.parse::<u64>())
        .map_err(|_| "Parameter 'cache-clean-interval' expects a number".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caches(options: &[(&str, &str)]) -> Result<u64, String> {
        let mut runtime = Runtime::default();
        for (name, value) in options {
            runtime.set(name, value).unwrap()?;
        }
        runtime.overlaps()?;
        runtime.caches(64 << 10, 8 << 30, 8)
    }

    #[test]
    fn sizes_of_caches_follow_qemus_rules() {
        assert_eq!(caches(&[]), Ok(1 << 20));
        assert_eq!(caches(&[("cache-size", "0")]), Ok(0));
        assert_eq!(caches(&[("cache-size", "1M")]), Ok(768 << 10));
        assert_eq!(caches(&[("cache-size", "1M"), ("refcount-cache-size", "0.5M")]), Ok(512 << 10));
        assert_eq!(caches(&[("l2-cache-size", "64k"), ("cache-size", "1M")]), Ok(64 << 10));
        let large = caches(&[("cache-size", "1M"), ("l2-cache-size", "2M")]);
        assert_eq!(large, Err("l2-cache-size may not exceed cache-size".into()));
        let odd = caches(&[("l2-cache-entry-size", "33k")]).unwrap_err();
        assert_eq!(
            odd,
            "L2 cache entry size must be a power of two between 512 and the cluster size (65536)"
        );
        assert_eq!(caches(&[("refcount-cache-size", "256T")]), Err("Refcount cache size too big".into()));
    }

    #[test]
    fn values_are_looked_at() {
        let lazy = caches(&[("lazy-refcounts", "42")]);
        assert_eq!(lazy, Err("Parameter 'lazy-refcounts' expects 'on' or 'off'".into()));
        assert!(caches(&[("overlap-check", "blubb")]).unwrap_err().contains("none, constant, cached, all"));
        assert!(
            caches(&[("overlap-check", "all"), ("overlap-check.template", "none")])
                .unwrap_err()
                .contains("Conflicting")
        );
        assert_eq!(Runtime::default().set("foo", "1"), None);
        assert_eq!(interval("-1"), Ok(u64::MAX));
    }
}
