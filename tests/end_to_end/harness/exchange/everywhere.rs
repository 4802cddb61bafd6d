//! Sends the same request to a proxy in each version of HTTP.

use std::{cell::RefCell, ops::Deref};

use super::{super::Proxy, Outcome, Request, Speaker, SpeakerH1, SpeakerH2, Version};
use crate::harness::{
    Config,
    pki::{SelfSigned, TLS},
};

/// The proxy, and a client per version. `main` speaks HTTP/1.1 and HTTP/2; `secure` is the same with TLS, and speaks
/// HTTP/3.
pub struct Everywhere {
    speakers: RefCell<Vec<Box<dyn Speaker>>>,
    proxy: Proxy,
}

impl Everywhere {
    /// Starts the proxy with the listener `main` of this configuration.
    pub fn start(config: Config) -> Everywhere {
        let pair = SelfSigned::new();
        let http3 = if cfg!(feature = "http3") { "http3: true" } else { "" };
        let proxy = Proxy::start_with(config.again("secure", &format!("{http3}\n{TLS}")), &pair.files());
        let main = proxy.address("main");
        let speakers: Vec<Box<dyn Speaker>> = vec![
            Box::new(SpeakerH1::new(main)),
            Box::new(SpeakerH2::new(main)),
            #[cfg(feature = "http3")]
            Box::new(super::SpeakerH3::new(proxy.address("secure"), pair.der())),
        ];
        Everywhere { speakers: RefCell::new(speakers), proxy }
    }

    /// Sends a request in each version, one after the other, and passes each outcome to `look`.
    pub fn each(&self, request: &Request, mut look: impl FnMut(Version, Outcome)) {
        for speaker in self.speakers.borrow_mut().iter_mut() {
            let outcome = speaker.exchange(request);
            look(speaker.version(), outcome);
        }
    }

    /// The status of a request, which must be the same in each version.
    #[track_caller]
    pub fn status(&self, request: &Request) -> u16 {
        let mut all = Vec::new();
        self.each(request, |_, outcome| all.push(outcome.status()));
        assert!(all.iter().all(|status| *status == all[0]), "{all:?} for {request:?}");
        all[0]
    }
}

impl Deref for Everywhere {
    type Target = Proxy;

    fn deref(&self) -> &Proxy {
        &self.proxy
    }
}
