//! Debian's plugins in network namespaces of our own.
