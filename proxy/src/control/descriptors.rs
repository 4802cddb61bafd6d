//! The bound on open files. Most systems start programs with a soft limit of 1024 for the sake of `select`, which nobody here
//! uses, and a far higher hard limit, which a program may raise the soft one to.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. What it was and what it is now, if that is more; `u64::MAX` for no limit.
///
/// # Errors
/// The system refuses.
pub fn raise() -> rustix::io::Result<Option<(u64, u64)>> {
    let limit = getrlimit(Resource::Nofile);
    let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    let (soft, hard) = (number(limit.current), number(limit.maximum));
    if soft >= hard {
        return Ok(None);
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(Some((soft, hard)))
}
