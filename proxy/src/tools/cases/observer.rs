//! The last filter of a case's chain, which only records each stream when it ends, like the access log.

use std::{cell::RefCell, rc::Rc};

use tollgate_abi::fast::{flag, phase};

use crate::chain::{Action, Direction, Filter, HeadersPause, Stream};

/// The state of a stream at its end.
#[derive(Debug, Clone, Default)]
pub struct Ended {
    pub flags: Vec<&'static str>,
    pub details: String,
    pub log_fields: Vec<(String, String)>,
    pub route: Option<String>,
    pub cluster: Option<String>,
    /// The number of attempts.
    pub attempts: u32,
}

/// Records ended streams.
#[derive(Debug, Default)]
pub struct Observer(RefCell<Option<Ended>>);

impl Observer {
    /// Takes the most recently ended stream.
    pub fn take(&self) -> Option<Ended> {
        self.0.take()
    }
}

impl Filter for Observer {
    fn name(&self) -> &str {
        "observer"
    }

    fn phases(&self) -> u32 {
        phase::LOG
    }

    fn headers_pause(&self) -> HeadersPause {
        HeadersPause::default()
    }

    fn changes_body(&self, _: Direction) -> bool {
        false
    }

    fn on_headers(&self, _: Direction, _: &Rc<Stream>, _: usize, _: bool) -> Action {
        Action::Continue
    }

    fn on_body(&self, _: Direction, _: &Rc<Stream>, _: usize, _: usize, _: bool) -> Action {
        Action::Continue
    }

    fn on_trailers(&self, _: Direction, _: &Rc<Stream>, _: usize) -> Action {
        Action::Continue
    }

    fn on_end(&self, stream: &Rc<Stream>, _: usize) {
        let state = stream.state.borrow();
        let route = state.route.as_ref();
        *self.0.borrow_mut() = Some(Ended {
            flags: flag::NAMES.iter().filter(|(bit, _)| state.flags & bit != 0).map(|(_, name)| *name).collect(),
            details: state.details.to_string(),
            log_fields: state.log_fields.clone(),
            route: route.map(|r| r.route.name.to_string()),
            cluster: route.map(|r| r.cluster().name().to_string()),
            attempts: state.attempts,
        });
    }
}
