//! `quod serve nbd`: images as exports of an NBD server.
//!
//! Knows: options, addresses as people and systemd give them. Must never know: the protocol, the loop.

use crate::cmd::sandbox::Needs;
use crate::cmd::serving::{Managing, Opening, ended_by_signal, not_opened};
use crate::interrupt;
use crate::out::{fail, flush, has_failed};
use crate::words::failure::warn_of_change;
use listenfd::ListenFd;
use quod_serve::{Address, ExportOptions, ServeError, Server, ServerOptions, TlsOptions};
use std::path::PathBuf;
use std::process::ExitCode;

/// The port that IANA has given to NBD.
const PORT: u16 = 10809;

/// Serve images to NBD clients
#[derive(clap::Args)]
pub struct Args {
    /// Listen at this UNIX socket; may be given again
    #[arg(short = 'k', long, value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// Listen at this TCP address (port 10809 if none is named); may be given again
    #[arg(short, long, value_name = "ADDR[:PORT]")]
    tcp: Vec<String>,
    /// Offer an image by this name; may be given again
    #[arg(short, long, value_name = "NAME=IMAGE")]
    export: Vec<String>,
    #[command(flatten)]
    opening: Opening,
    /// TLS with the certificate of this folder: server-cert.pem, server-key.pem
    #[arg(long, value_name = "DIR")]
    tls_certificates: Option<PathBuf>,
    /// Must clients use TLS ('require'), or may they ('on')?
    #[arg(long, value_name = "WHETHER", value_enum, default_value_t, requires = "tls_certificates")]
    tls: Tls,
    /// Clients must show a certificate that one of ca-cert.pem has signed
    #[arg(long, requires = "tls_certificates")]
    tls_verify_peer: bool,
    /// Refused: there are no pre-shared keys
    #[arg(long, value_name = "FILE", hide = true)]
    tls_psk: Option<PathBuf>,
    /// Clients at once
    #[arg(long, value_name = "N", default_value_t = 256)]
    clients: usize,
    #[command(flatten)]
    managing: Managing,
    /// The image of the default export
    image: Option<PathBuf>,
}

/// What `--tls` may be.
#[derive(Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Tls {
    On,
    #[default]
    Require,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    if let Err(code) = args.managing.log() {
        return code;
    }
    if args.tls_psk.is_some() {
        return fail(
            "--tls-psk: this server has no TLS with pre-shared keys; use certificates (--tls-certificates)",
        );
    }
    let options = match args.opening.options() {
        Ok(options) => options,
        Err(code) => return code,
    };
    let mut exports: Vec<ExportOptions> =
        args.image.iter().map(|image| ExportOptions::new("", image, options.clone())).collect();
    for export in &args.export {
        let Some((name, image)) =
            export.split_once('=').filter(|(name, image)| !name.is_empty() && !image.is_empty())
        else {
            return fail(format!("--export '{export}': a name and an image are wanted, NAME=IMAGE"));
        };
        exports.push(ExportOptions::new(name, image, options.clone()));
    }
    if exports.is_empty() {
        return fail("nothing to serve: name an image, or some by --export NAME=IMAGE");
    }
    let limits = ServerOptions::default().clients(args.clients.max(1));
    let limits = limits.config(args.managing.config(limits.config));
    match Server::new(limits).and_then(|server| serve(server, &args, exports)) {
        Ok(code) => code,
        Err(ServeError::Open { path, error }) => not_opened(&path, &error),
        Err(error) => fail(error),
    }
}

fn serve(mut server: Server, args: &Args, exports: Vec<ExportOptions>) -> Result<ExitCode, ServeError> {
    for path in &args.socket {
        server.listen(&Address::Unix(path.clone()))?;
    }
    for address in &args.tcp {
        server.listen(&Address::Tcp(with_port(address)))?;
    }
    given_sockets(&mut server)?;
    if server.addresses().next().is_none() {
        return Ok(fail("nowhere to listen: --socket PATH, --tcp ADDR:PORT, or a socket from systemd"));
    }
    if let Some(folder) = &args.tls_certificates {
        match TlsOptions::x509(folder, args.tls_verify_peer) {
            Ok(tls) => server.use_tls(tls.required(args.tls == Tls::Require)),
            Err(text) => return Ok(fail(format!("TLS: {text}"))),
        }
    }
    match args.managing.control() {
        Ok(Some(control)) => server.use_control(control)?,
        Ok(None) => {}
        Err(code) => return Ok(code),
    }
    let ended = ended_by_signal().map_err(ServeError::Wait)?;
    server.stop_when_readable(ended)?;
    for export in exports {
        let path = export.path().to_path_buf();
        server.open(export)?;
        warn_of_change(&path, server.last_opened());
    }
    let sockets: Vec<Address> = server.addresses().cloned().collect();
    let restricted = server.has_restricted_ring();
    let renew = || server.is_confined();
    if let Err(code) = args.managing.confine(Needs::NBD, sockets.into_iter(), restricted, renew) {
        return Ok(code);
    }
    let secure = args.tls_certificates.is_some() && args.tls == Tls::Require;
    for address in server.addresses() {
        match address {
            Address::Unix(path) => {
                let scheme = if secure { "nbds+unix" } else { "nbd+unix" };
                sayln!("Serving at {scheme}:///?socket={}", path.display());
            }
            Address::Tcp(address) => sayln!("Serving at {}://{address}", if secure { "nbds" } else { "nbd" }),
            // whoever gave it knows it, and the output may be data's
            Address::Given => {}
        }
    }
    // whoever started the server waits for these lines
    flush();
    if has_failed() {
        return Ok(ExitCode::FAILURE);
    }
    server.run()?;
    interrupt::forget();
    Ok(ExitCode::SUCCESS)
}

/// Sockets that systemd has opened (LISTEN_FDS).
fn given_sockets(server: &mut Server) -> Result<(), ServeError> {
    let given = |error| ServeError::Listen { address: Address::Given, error };
    let mut sockets = ListenFd::from_env();
    for n in 0..sockets.len() {
        if let Ok(Some(listener)) = sockets.take_unix_listener(n) {
            server.listen_unix(listener)?;
        } else if let Some(listener) = sockets.take_tcp_listener(n).map_err(given)? {
            server.listen_tcp(listener)?;
        }
    }
    Ok(())
}

/// An address with a port, which may be left out.
fn with_port(address: &str) -> String {
    let host = address.rsplit_once(']').map_or(address, |(_, behind)| behind);
    if host.contains(':') { address.to_string() } else { format!("{address}:{PORT}") }
}

#[cfg(test)]
mod tests {
    use super::with_port;

    #[test]
    fn ports_may_be_left_out() {
        for (given, whole) in [
            ("localhost", "localhost:10809"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]", "[::1]:10809"),
            ("[::1]:5", "[::1]:5"),
        ] {
            assert_eq!(with_port(given), whole);
        }
    }
}
