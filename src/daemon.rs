//! The daemon: builds every layer and owns the order of shutdown.
