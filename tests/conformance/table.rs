//! The table of all cases, `docs/conformance.md`.
