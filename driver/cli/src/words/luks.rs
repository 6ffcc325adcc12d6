//! What `quod info` says of encryption: the header of LUKS.
//!
//! Knows: how qemu-img prints it. Must never know: where it lies in the file.

use crate::words::json::nested;
use quod_tools::{KeySlot, Luks};
use serde_json::{Map, Value, json};

/// The fields of a LUKS header, in the order in which qemu-img prints them. `format`: what it is called where
/// that is not plain.
pub fn luks(header: &Luks, format: Option<&str>) -> Value {
    let mut fields = Map::new();
    let mut add = |name: &str, value: Value| fields.insert(name.to_string(), value);
    // a mode without vectors has them in name only
    add("ivgen-alg", header.vectors().unwrap_or("plain64").into());
    add("detached-header", false.into());
    add("hash-alg", header.hash.as_str().into());
    add("cipher-alg", header.algorithm().into());
    add("uuid", header.uuid.as_str().into());
    if let Some(hash) = header.vectors_hash() {
        add("ivgen-hash-alg", hash.into());
    }
    if let Some(format) = format {
        add("format", format.into());
    }
    add("cipher-mode", header.block_mode().into());
    add("slots", header.slots.iter().map(slot).collect());
    add("payload-offset", header.payload_offset.into());
    add("master-key-iters", header.key_rounds.into());
    Value::Object(fields)
}

fn slot(slot: &KeySlot) -> Value {
    match slot.active {
        false => json!({"active": false, "key-offset": slot.key_offset}),
        true => json!({
            "active": true,
            "iters": slot.rounds,
            "key-offset": slot.key_offset,
            "stripes": slot.stripes,
        }),
    }
}

/// The lines about a LUKS container.
pub fn human(header: &Luks) -> Vec<String> {
    let mut lines = vec!["Format specific information:".into()];
    nested(&luks(header, None), 1, &mut lines);
    lines
}
