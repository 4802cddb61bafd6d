//! A certificate for the proxies: ECDSA P-256, signed by itself.

use std::{fs, path::Path};

use anyhow::Context;

/// Writes `tls.pem`, `tls.key`, and `tls.both`, as HAProxy wants it.
pub fn write_certificate(folder: &Path) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).context("a certificate")?;
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(folder.join("tls.pem"), &certificate)?;
    fs::write(folder.join("tls.key"), &key)?;
    fs::write(folder.join("tls.both"), certificate + &key)?;
    Ok(())
}
