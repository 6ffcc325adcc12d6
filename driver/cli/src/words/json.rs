//! JSON as QEMU's tools print it: four spaces a level, empty lists and objects over two lines; and what they
//! print of it for people.
//!
//! Knows: JSON values. Must never know: what they say.

use serde_json::Value;

/// The text of a value, without a newline at the end.
pub fn pretty(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out
}

fn write(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Array(items) => {
            let items = items.iter().map(|item| (None, item));
            write_block('[', ']', items, depth, out);
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, field)| (Some(name.as_str()), field));
            write_block('{', '}', fields, depth, out);
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn write_block<'a>(
    open: char,
    close: char,
    items: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
    depth: usize,
    out: &mut String,
) {
    out.push(open);
    for (index, (name, item)) in items.enumerate() {
        out.push_str(if index == 0 { "\n" } else { ",\n" });
        out.push_str(&"    ".repeat(depth + 1));
        if let Some(name) = name {
            out.push_str(&Value::from(name).to_string());
            out.push_str(": ");
        }
        write(item, depth + 1, out);
    }
    out.push('\n');
    out.push_str(&"    ".repeat(depth));
    out.push(close);
}

/// A JSON value as qemu-img prints it for people.
pub fn nested(value: &Value, depth: usize, lines: &mut Vec<String>) {
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.replace('-', " "), value)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, item)| (format!("[{index}]"), item)).collect()
        }
        _ => Vec::new(),
    };
    let indent = "    ".repeat(depth);
    for (name, value) in entries {
        match value {
            Value::Object(_) | Value::Array(_) => {
                lines.push(format!("{indent}{name}:"));
                nested(value, depth + 1, lines);
            }
            Value::String(text) => lines.push(format!("{indent}{name}: {text}")),
            other => lines.push(format!("{indent}{name}: {other}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn looks_like_qemu_img() {
        let value = json!({"children": [], "data": {}, "list": [1, {"a": "b\"c"}], "flag": false});
        let text = "{\n    \"children\": [\n    ],\n    \"data\": {\n    },\n    \"list\": [\n        \
                    1,\n        {\n            \"a\": \"b\\\"c\"\n        }\n    ],\n    \"flag\": false\n}";
        assert_eq!(pretty(&value), text);
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), value);
    }
}
