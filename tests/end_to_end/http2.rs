//! HTTP/2 on both sides, spoken frame by frame: what must pass, what must be refused, and what a peer may do to the
//! others on its connection, or to the proxy's memory.

mod connections;
mod floods;
mod messages;
mod shared;
mod tunnels;
mod upstream;
mod windows;
