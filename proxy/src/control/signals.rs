//! The signals that the process hears. It hears them before it does anything else: no signal that nginx, Caddy or logrotate
//! send ends it in a way of its own, and as the first process of a container (PID 1) it is not deaf to SIGTERM.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Drain and end; a second time, end at once. The signal's name.
    Stop(&'static str),
    /// Reopen the access logs and read the configuration again.
    Reload,
    /// Reopen the access logs.
    Reopen,
    /// Nothing. The signal's name.
    Nothing(&'static str),
}

/// All signals that are handled.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    /// Takes them over. What comes from now on is kept until it is asked for.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next one that ends the process, by its name. Others are kept.
    pub async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
        }
    }

    /// What the next one asks for.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Request::Stop("SIGINT"),
            _ = self.quit.recv() => Request::Stop("SIGQUIT"),
            _ = self.hangup.recv() => Request::Reload,
            _ = self.user1.recv() => Request::Reopen,
            _ = self.user2.recv() => Request::Nothing("SIGUSR2"),
        }
    }
}
