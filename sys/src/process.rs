//! The running process itself: its descriptors, its title, the memory it gives back.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Closes every descriptor from `first` up. For the first lines of `main`, before anything is opened: whatever a
/// careless parent leaked ends here.
pub fn close_descriptors_from(first: u32) {
    // SAFETY: `close_range` takes no pointers. Nothing owns a descriptor yet when this is called as documented.
    if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } == 0 {
        return;
    }
    // A kernel before 5.9: close what is listed. The listing's own descriptor is closed by its end.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers
        .into_iter()
        .filter(|n| u32::try_from(*n).is_ok_and(|n| n >= first))
    {
        // SAFETY: as above; a number that is closed already gives an error and no harm.
        unsafe { libc::close(number) };
    }
}

/// Moves `fd` to `number` and closes everything above. For a process that was just forked and uses nothing else of
/// what it inherited: values that own other descriptors must never be dropped in it.
pub(crate) fn only_descriptor(fd: OwnedFd, number: i32) -> io::Result<OwnedFd> {
    let kept = if fd.as_raw_fd() == number {
        fd
    } else {
        // SAFETY: `dup3` takes no pointers; both are descriptor numbers, and `number` is nobody's any more.
        if unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        drop(fd);
        // SAFETY: `dup3` just made `number` a descriptor of its own, which this function alone knows.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    close_descriptors_from(number.unsigned_abs() + 1);
    Ok(kept)
}

/// Gives the heap's free memory back to the kernel. For a process that is about to sleep for long.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes no pointers and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes `ps` show `title` as this process's name and command line, as far as the original line had room.
///
/// # Errors
/// `/proc/self/stat` is not readable, or not understood.
pub fn set_title(title: &str) -> io::Result<()> {
    // The kernel keeps 15 bytes of a name.
    let name: Vec<u8> = title.bytes().filter(|b| *b != 0).take(15).collect();
    rustix::thread::set_name(&std::ffi::CString::new(name).map_err(io::Error::other)?)?;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in parentheses may hold anything; fields count from behind it (proc(5): 48 and 49 are the bounds of
    // the arguments, the first behind the name is 3).
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let bound = |number: usize| {
        fields
            .split_ascii_whitespace()
            .nth(number - 3)
            .and_then(|f| f.parse::<usize>().ok())
    };
    let (Some(start), Some(end)) = (bound(48), bound(49)) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "/proc/self/stat has no argument bounds",
        ));
    };
    if start == 0 || end <= start {
        return Ok(());
    }
    let room = end - start;
    let text = &title.as_bytes()[..title.len().min(room - 1)];
    // SAFETY: the kernel names [start, end) as the argument strings, which live on this process's stack above the
    // first frame and are writable. Rust's standard library copied none of them by reference that is read after
    // this: `std::env::args` would show the new text, which is text too.
    unsafe {
        std::ptr::write_bytes(start as *mut u8, 0, room);
        std::ptr::copy_nonoverlapping(text.as_ptr(), start as *mut u8, text.len());
    }
    Ok(())
}

/// A large buffer whose memory can be given back without giving up the buffer.
#[derive(Debug)]
pub struct Pages {
    start: std::ptr::NonNull<u8>,
    len: usize,
}

impl Pages {
    /// Reserves `len` bytes, all zero. Memory is used from the first write to each page on.
    ///
    /// # Errors
    /// The address space is full.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new private anonymous mapping touches no memory that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = std::ptr::NonNull::new(address.cast())
            .ok_or_else(|| io::Error::other("mapping at 0"))?;
        Ok(Self { start, len })
    }

    /// The whole buffer.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` bytes of initialised (zero) memory that only this value refers to.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Gives the memory back; the contents are zero again.
    pub fn release(&mut self) {
        // SAFETY: the range is exactly this value's own mapping, borrowed exclusively; private anonymous pages read
        // as zero afterwards. A failure keeps the memory, which is the worse but correct outcome.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_DONTNEED) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and no borrow of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_are_zero_and_usable() {
        let mut pages = Pages::new(1 << 16).unwrap();
        pages.bytes().fill(7);
        pages.release();
        assert!(pages.bytes().iter().all(|b| *b == 0));
        pages.bytes()[65535] = 1;
    }
}
