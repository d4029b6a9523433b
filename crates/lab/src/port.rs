//! Free TCP ports on this machine.

use handover_core::{Error, Result};
use rand::RngExt;
use std::net::{Ipv4Addr, TcpListener};

/// A port of the loopback address that nobody listens on.
///
/// Taken at random below the range that systems give to outgoing connections (32768 and up on Linux), so
/// that a server which is stopped and started again finds its port free: a client's connection may sit on
/// any port of that range. Another process may still take the port first; whoever listens must be ready
/// to try again.
pub(crate) fn free() -> Result<u16> {
    let mut rng = rand::rng();
    for _ in 0..200 {
        let port = rng.random_range(15_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|e| Error::external(format!("no free port on 127.0.0.1: {e}")))
}
