//! Lists of `name=value`, comma separated, as `-o` and `--image-opts` take them.
//!
//! Knows: commas (doubled inside a value) and equal signs. Must never know: any name.

/// Splits a list. A name without a value gets `on`. None: an empty item.
pub fn parse(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for item in split(text) {
        if item.is_empty() {
            return None;
        }
        pairs.push(match item.split_once('=') {
            Some((name, value)) => (name.to_string(), value.to_string()),
            None => (item, "on".to_string()),
        });
    }
    Some(pairs)
}

/// Splits at single commas; a doubled comma is a comma.
fn split(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            items.push(String::new());
        } else if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_are_doubled_inside_values() {
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        assert_eq!(parse("a=b,,c,d=e=f,g"), Some(vec![pair("a", "b,c"), pair("d", "e=f"), pair("g", "on")]));
        assert_eq!(parse("a=1,"), None);
        assert_eq!(parse(""), None);
    }
}
