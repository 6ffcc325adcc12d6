//! "TLS support", as far as it is the codec's.

use super::common::*;
use quod_nbd::{End, Next, Tls, Violation};

/// "NOTLS mode": `NBD_REP_ERR_POLICY`.
#[test]
fn without_tls_it_is_refused() {
    assert_eq!(kinds(&mut greeted(Tls::Off), STARTTLS, &[]), [ERR_POLICY]);
}

/// "The client MUST NOT issue `NBD_OPT_STARTTLS` unless ... the client replied with
/// `NBD_FLAG_C_FIXED_NEWSTYLE`".
#[test]
fn without_fixed_newstyle_there_is_none() {
    let mut connection = quod_nbd::Connection::new(Tls::Offered);
    let bytes = [&2u32.to_be_bytes()[..], &option(STARTTLS, &[])].concat();
    let talked = talk(&mut connection, &bytes);
    assert_eq!(replies(STARTTLS, &talked.sent[18..])[0].0, ERR_POLICY);
}

/// "FORCEDTLS mode": every option but STARTTLS and ABORT is refused, EXPORT_NAME ends the connection.
#[test]
fn where_tls_is_required_nothing_is_told_without() {
    let mut connection = greeted(Tls::Required);
    for number in [LIST, OPT_INFO, GO, STRUCTURED, LIST_CONTEXTS, SET_CONTEXTS, EXTENDED, 99] {
        assert_eq!(kinds(&mut connection, number, &info("", &[])), [ERR_TLS_REQD]);
        assert_eq!(kinds(&mut connection, number, &vec![0; 20_000]), [ERR_TLS_REQD]);
    }
    let talked = talk(&mut connection.clone(), &option(EXPORT_NAME, b""));
    assert_eq!(talked.next, Next::End(End::Broken(Violation::NoTls)));
    assert_eq!(talk(&mut connection, &option(ABORT, &[])).next, Next::End(End::Asked));
}

/// "`NBD_OPT_STARTTLS`": no data, once, and what follows is not the codec's; what was negotiated before is
/// forgotten.
#[test]
fn what_was_negotiated_in_the_clear_is_forgotten() {
    let mut connection = greeted(Tls::Offered);
    assert_eq!(kinds(&mut connection, EXTENDED, &[]), [ACK]);
    assert_eq!(kinds(&mut connection, SET_CONTEXTS, &queries("", &["base:allocation"])), [META_CONTEXT, ACK]);
    assert_eq!(kinds(&mut connection, STARTTLS, b"x"), [ERR_INVALID]);
    let talked = talk(&mut connection, &[&option(STARTTLS, &[])[..], b"hello"].concat());
    assert_eq!((talked.next, &talked.left[..]), (Next::Handshake, &b"hello"[..]));
    assert_eq!(replies(STARTTLS, &talked.sent), [(ACK, Vec::new())]);
    connection.secured();
    assert_eq!(kinds(&mut connection, STARTTLS, &[]), [ERR_INVALID]);
    assert_eq!(go(&mut connection, "") & (1 << 7 | 1 << 12), 0, "neither chunks nor contexts");
}

#[test]
fn behind_tls_a_client_is_served() {
    let mut connection = greeted(Tls::Required);
    assert_eq!(talk(&mut connection, &option(STARTTLS, &[])).next, Next::Handshake);
    connection.secured();
    assert_eq!(kinds(&mut connection, LIST, &[]).last(), Some(&ACK));
    assert_eq!(talk(&mut connection, &option(EXPORT_NAME, b"")).next, Next::Transmission(0));
}
