//! The image store, set up from the configuration.

