//! As much of HTTP as it takes to fetch one text: GET and HEAD, one request a connection.
//!
//! Knows: request lines, heads of responses. Must never know: sockets, what the text says.
//! Invariant: whatever bytes come, they are a request, an error, or not whole yet.

/// Longest head of a request, bytes.
pub(crate) const HEAD_MAX: usize = 4096;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// `body` false: its head alone.
    Metrics {
        body: bool,
    },
    NotFound,
    NotAllowed,
    Bad,
}

/// Reads a request's head. None: it is not whole yet.
pub(crate) fn read(bytes: &[u8]) -> Option<Wanted> {
    let blank = |end: &[u8]| bytes.windows(end.len()).any(|window| window == end);
    if !blank(b"\r\n\r\n") && !blank(b"\n\n") {
        return (bytes.len() >= HEAD_MAX).then_some(Wanted::Bad);
    }
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Ok(line) = std::str::from_utf8(line) else { return Some(Wanted::Bad) };
    let words: Vec<&str> = line.trim_end_matches('\r').split(' ').collect();
    let [method, target, version] = words[..] else { return Some(Wanted::Bad) };
    if !version.starts_with("HTTP/1.") {
        return Some(Wanted::Bad);
    }
    let path = target.split('?').next().unwrap_or_default();
    Some(match (method, path) {
        ("GET", "/metrics" | "/") => Wanted::Metrics { body: true },
        ("HEAD", "/metrics" | "/") => Wanted::Metrics { body: false },
        ("GET" | "HEAD", _) => Wanted::NotFound,
        _ => Wanted::NotAllowed,
    })
}

/// The response; `text` is asked for if it is wanted.
pub(crate) fn respond(wanted: Wanted, text: impl FnOnce() -> String) -> Vec<u8> {
    let (status, kind, text) = match wanted {
        Wanted::Metrics { .. } => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", text()),
        Wanted::NotFound => ("404 Not Found", "text/plain", "it is at /metrics\n".into()),
        Wanted::NotAllowed => ("405 Method Not Allowed", "text/plain", "GET or HEAD\n".into()),
        Wanted::Bad => ("400 Bad Request", "text/plain", "that is no request of HTTP/1\n".into()),
    };
    let allow = if wanted == Wanted::NotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
    let len = text.len();
    let mut response = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n{allow}\
         Connection: close\r\n\r\n"
    );
    if wanted != (Wanted::Metrics { body: false }) {
        response.push_str(&text);
    }
    response.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let metrics = Some(Wanted::Metrics { body: true });
        for (bytes, wanted) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", metrics),
            ("GET /?a=b HTTP/1.0\n\n", metrics),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Some(Wanted::Metrics { body: false })),
            ("GET /other HTTP/1.1\r\n\r\n", Some(Wanted::NotFound)),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some(Wanted::NotAllowed)),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n", None),
            ("", None),
            ("GET /metrics\r\n\r\n", Some(Wanted::Bad)),
            ("GET /metrics HTTP/2\r\n\r\n", Some(Wanted::Bad)),
            ("GET  /metrics HTTP/1.1\r\n\r\n", Some(Wanted::Bad)),
            ("\r\n\r\n", Some(Wanted::Bad)),
        ] {
            assert_eq!(read(bytes.as_bytes()), wanted, "{bytes:?}");
        }
        assert_eq!(read(&[0xff; HEAD_MAX]), Some(Wanted::Bad));
        assert_eq!(read(&[b'x'; HEAD_MAX - 1]), None);
    }

    #[test]
    fn responses_say_how_long_they_are() {
        let text = |wanted| String::from_utf8(respond(wanted, || "abc\n".into())).unwrap();
        let whole = text(Wanted::Metrics { body: true });
        assert!(whole.starts_with("HTTP/1.0 200 OK\r\n") && whole.ends_with("\r\n\r\nabc\n"), "{whole}");
        assert!(whole.contains("Content-Length: 4\r\n"));
        assert!(text(Wanted::Metrics { body: false }).ends_with("Connection: close\r\n\r\n"));
        assert!(text(Wanted::NotAllowed).contains("Allow: GET, HEAD\r\n"));
    }
}
