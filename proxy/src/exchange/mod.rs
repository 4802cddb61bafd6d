//! One request's life: the only place that knows the whole story.
//!
//! [`serve`] takes a request from a connection and gives back its response. In between: [`request`] makes a stream of it,
//! the chain's request filters see it, [`dispatch`] sends it to an upstream (perhaps several times), the response filters
//! see what came back, and [`response`] sends that on. Whatever goes wrong ends in [`reply`], with one status and one flag.
//! [`ending`] settles the accounts, whichever way the stream ended.

mod ahead;
mod deadline;
mod dispatch;
mod ending;
mod grpc;
mod methods;
mod mirror;
mod outcome;
mod pace;
mod refusal;
mod reply;
pub(crate) mod request;
mod response;
mod serve;
mod site;
mod switch;
mod tunnel;
mod upload;

pub use self::{
    ending::worker_ends,
    methods::Methods,
    outcome::{Answer, Closed},
    refusal::{Refusal, Refused, Warned},
    request::HeadTooLarge,
    serve::serve,
    site::{ClusterFigures, Connections, Figures, Site, Via},
    tunnel::Tunnel,
};
