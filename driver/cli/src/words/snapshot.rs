//! Snapshots as `convert -l` names them.
//!
//! Knows: QEMU's words for one. Must never know: which snapshots there are.

use super::keyval;
use quod::SnapshotSelector;

/// What makes a list of options of the word.
const BASE: &str = "snapshot.";

/// `snapshot.id=ID,snapshot.name=NAME`, or one word that is an identifier or a name.
pub fn parse(text: &str) -> Result<SnapshotSelector, String> {
    if !text.starts_with(BASE) {
        return Ok(SnapshotSelector::IdOrName(text.into()));
    }
    let failed = |why: String| format!("{why}\nFailed in parsing snapshot param '{text}'");
    let (mut id, mut name) = (None, None);
    for (key, value) in keyval::parse(text).ok_or_else(|| failed("Invalid parameter ''".into()))? {
        match key.strip_prefix(BASE) {
            Some("id") => id = Some(value.into()),
            Some("name") => name = Some(value.into()),
            _ => return Err(failed(format!("Invalid parameter '{key}'"))),
        }
    }
    Ok(match (id, name) {
        (Some(id), Some(name)) => SnapshotSelector::IdAndName(id, name),
        (Some(id), None) => SnapshotSelector::Id(id),
        (None, Some(name)) => SnapshotSelector::Name(name),
        (None, None) => SnapshotSelector::IdOrName(text.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_what_its_words_are() {
        assert_eq!(parse("1"), Ok(SnapshotSelector::IdOrName(b"1".to_vec())));
        assert_eq!(parse("snapshot.id=1"), Ok(SnapshotSelector::Id(b"1".to_vec())));
        assert_eq!(parse("snapshot.name=a,,b"), Ok(SnapshotSelector::Name(b"a,b".to_vec())));
        let both = SnapshotSelector::IdAndName(b"1".to_vec(), b"a".to_vec());
        assert_eq!(parse("snapshot.name=a,snapshot.id=1"), Ok(both));
        let told = "Invalid parameter 'snapshot.x'\nFailed in parsing snapshot param 'snapshot.x=1'";
        assert_eq!(parse("snapshot.x=1"), Err(told.into()));
    }
}
