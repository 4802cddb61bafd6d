//! Replaces a filter's file under load, and reads how often the proxy has applied a new module.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;

use crate::process::get;

/// The version of the running configuration.
pub fn version(admin: u16) -> anyhow::Result<u64> {
    let answer = get(admin, "/config")?;
    let number = answer.split_once("\"version\":").map(|(_, rest)| rest.split(',').next().unwrap_or_default().trim());
    number
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("the admin listener's response has no version:\n{answer}"))
}

/// Replaces the module every second until `over` is set; returns how often.
pub fn replace_every_second(file: &Path, over: &AtomicBool) -> anyhow::Result<u64> {
    let module = fs::read(file)?;
    let next = file.with_extension("next");
    let mut count = 0;
    loop {
        for _ in 0..20 {
            if over.load(Ordering::Relaxed) {
                return Ok(count);
            }
            thread::sleep(Duration::from_millis(50));
        }
        // Atomically, as a build does: never half a file.
        fs::write(&next, another(&module)?)?;
        fs::rename(&next, file)?;
        count += 1;
    }
}

/// A new module with the same code: a custom section with the time makes it unique.
fn another(module: &[u8]) -> anyhow::Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    // Section 0 of 13 bytes, with a name of 4.
    let section = [&[0, 13, 4][..], b"time", &now.to_le_bytes()].concat();
    Ok([module, &section].concat())
}
