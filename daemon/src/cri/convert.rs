//! Between CRI's protobuf types and the daemon's domain types: "parse, don't validate".
