//! TLS parameters that are the same for all proxies: the certificate, and the only version, cipher suite and group that
//! clients offer.

use std::{fs, path::Path};

use anyhow::{Context, ensure};

/// The parameters to negotiate with each proxy, in h2load's output format. `connect::client` offers the same.
pub const PINNED: [&str; 3] =
    ["TLS Protocol: TLSv1.3", "Cipher: TLS_AES_128_GCM_SHA256", "Server Temp Key: X25519 253 bits"];

/// h2load's flags for these parameters.
pub const H2LOAD: [&str; 2] = ["--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--groups=X25519"];

/// The same for wrk, which has no such flags, as an OpenSSL configuration.
const OPENSSL: &str = "openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = pinned
[pinned]
MinProtocol = TLSv1.3
Ciphersuites = TLS_AES_128_GCM_SHA256
Groups = X25519
";

/// Writes `tls.pem`, `tls.key` (ECDSA P-256, self-signed), `tls.both` for HAProxy, and `openssl.cnf` for wrk.
pub fn write_files(folder: &Path) -> anyhow::Result<()> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).context("a certificate")?;
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(folder.join("tls.pem"), &certificate)?;
    fs::write(folder.join("tls.key"), &key)?;
    fs::write(folder.join("tls.both"), certificate + &key)?;
    fs::write(folder.join("openssl.cnf"), OPENSSL)?;
    Ok(())
}

/// Checks that h2load has negotiated the pinned parameters.
pub fn check(output: &str) -> anyhow::Result<()> {
    for line in PINNED {
        let what = line.split(':').next().unwrap_or_default();
        let negotiated = output.lines().find(|line| line.starts_with(what)).unwrap_or("nothing");
        ensure!(negotiated == line, "expected to negotiate `{line}`, but got `{negotiated}`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiating_anything_else_is_an_error() {
        let said = PINNED.join("\n") + "\nApplication protocol: h2\n";
        check(&said).unwrap();
        let other = said.replace("X25519 253 bits", "ECDH P-256 256 bits");
        assert!(check(&other).unwrap_err().to_string().ends_with("`Server Temp Key: ECDH P-256 256 bits`"));
        assert!(check("").is_err());
    }
}
