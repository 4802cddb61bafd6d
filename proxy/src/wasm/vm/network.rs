//! A filter on a worker as TCP connections see it: the callbacks of Proxy-Wasm's L4 contexts.

use std::rc::Rc;

use tollgate_abi::{
    fast::phase,
    proxy_wasm::{action, peer},
};

use super::filter::WasmFilter;
use crate::{
    chain::{
        Action, Variants,
        network::{ClosedBy, NetworkFilter, NetworkStream, Side},
    },
    wasm::scope::stream_ref::StreamRef,
};

/// The guest's code for who closed a connection.
fn peer(closed: ClosedBy) -> i32 {
    match closed {
        ClosedBy::Local => peer::LOCAL,
        ClosedBy::Remote => peer::REMOTE,
    }
}

impl NetworkFilter for WasmFilter {
    fn name(&self) -> &str {
        &self.plugin().info.name
    }

    fn variants(&self) -> Variants<dyn NetworkFilter> {
        self.own_variants().map(|(name, filter)| (name, filter as Rc<dyn NetworkFilter>)).collect()
    }

    fn phases(&self) -> u32 {
        self.wanted_phases()
    }

    fn on_connection(&self, stream: &Rc<NetworkStream>, position: usize) -> Action {
        self.ask(&StreamRef::Tcp(stream.clone()), position, |store, exports, context| match &exports.new_connection {
            Some(f) => f.call(store, context),
            None => Ok(action::CONTINUE),
        })
    }

    fn on_data(&self, side: Side, stream: &Rc<NetworkStream>, position: usize, len: usize, end: bool) -> Action {
        self.ask(&StreamRef::Tcp(stream.clone()), position, |store, exports, context| {
            match &exports.data[side as usize] {
                Some(f) => f.call(store, (context, u32::try_from(len).unwrap_or(u32::MAX), end.into())),
                None => Ok(action::CONTINUE),
            }
        })
    }

    fn on_upstream_close(&self, stream: &Rc<NetworkStream>, position: usize, closed: ClosedBy) {
        // The result is ignored: this only notifies the filter.
        self.ask(&StreamRef::Tcp(stream.clone()), position, |store, exports, context| {
            let close = exports.close[Side::Upstream as usize].as_ref();
            close.map_or(Ok(()), |f| f.call(store, (context, peer(closed))))?;
            Ok(action::CONTINUE)
        });
    }

    fn on_end(&self, stream: &Rc<NetworkStream>, position: usize, downstream: ClosedBy, upstream: Option<ClosedBy>) {
        let phases = self.wanted_phases();
        self.end(&StreamRef::Tcp(stream.clone()), position, phases & phase::TCP != 0, |store, exports, context| {
            let upstream = upstream.filter(|_| phases & phase::UPSTREAM_CLOSE != 0).map(|c| (Side::Upstream, c));
            let downstream = (phases & phase::DOWNSTREAM_CLOSE != 0).then_some((Side::Downstream, downstream));
            for (side, closed) in upstream.into_iter().chain(downstream) {
                if let Some(f) = &exports.close[side as usize] {
                    f.call(&mut *store, (context, peer(closed)))?;
                }
            }
            Ok(())
        });
    }
}
