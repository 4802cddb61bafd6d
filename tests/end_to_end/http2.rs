//! HTTP/2 on both sides, frame by frame: what must pass, what must be rejected, and the limits on what a peer can do to
//! others on its connection or to the proxy's memory.

mod connections;
mod floods;
mod messages;
mod shared;
mod tunnels;
mod upstream;
mod windows;
