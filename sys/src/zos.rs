//! The calls of z/OS itself: on z/OS those of its C library, and with the feature `zos-stub` a stand-in with the same
//! signatures, so that every arm for z/OS is type-checked, and run, on Linux. What is above this module does not know
//! which of the two it has.

#[cfg_attr(
    not(target_os = "zos"),
    expect(dead_code, reason = "only checked: Linux has no such library")
)]
mod library;
#[cfg(not(target_os = "zos"))]
mod stub;

#[cfg(target_os = "zos")]
pub(crate) use library::{console2, socket_ioctl};
#[cfg(not(target_os = "zos"))]
pub(crate) use stub::{DVREQ, console2, socket_ioctl};

#[cfg(all(feature = "zos-stub", target_os = "zos"))]
compile_error!("the feature zos-stub is for systems that are not z/OS");
