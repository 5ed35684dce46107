//! The daemon's own profile, `RuntimeDefault`.
//!
//! It allows what programs in containers use and what is safe by the kernel's own checks; it is about as wide as the
//! defaults of Docker and containers-common, so that images which run there run here. It keeps out what acts on the
//! whole node, what attacks on kernels have gone through (keyrings, userfaultfd, io_uring, bpf, namespaces), and what
//! is obsolete. A call that a capability guards is allowed to a container that was given that capability.
//!
//! What is kept out on purpose answers EPERM, what is simply unknown ENOSYS: programs probe for new calls, and only
//! ENOSYS makes them fall back.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::{CapabilitySet, Machine, argument};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Always allowed: lists of names by subject.
const ALLOWED: &[&str] = &[
    // Contents and attributes of files.
    "
    access cachestat chmod chown chown32 copy_file_range creat faccessat faccessat2 fadvise64 fadvise64_64
    fallocate fchmod fchmodat fchmodat2 fchown fchown32 fchownat fdatasync fgetxattr file_getattr file_setattr
    flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate
    ftruncate64 futimesat getxattr getxattrat lchown lchown32 lgetxattr listxattr listxattrat llistxattr
    lremovexattr lsetxattr lstat lstat64 name_to_handle_at newfstatat open openat openat2 readahead
    removexattr removexattrat setxattr setxattrat stat stat64 statfs statfs64 statx sync sync_file_range
    sync_file_range2 syncfs truncate truncate64 umask utime utimensat utimensat_time64 utimes
    ",
    // Names in the file system.
    "
    chdir fanotify_mark fchdir getcwd getdents getdents64 inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch link linkat mkdir mkdirat mknod mknodat readdir readlink readlinkat rename renameat
    renameat2 rmdir symlink symlinkat unlink unlinkat
    ",
    // What is done with an open descriptor.
    "
    _llseek close close_range dup dup2 dup3 fcntl fcntl64 ioctl lseek memfd_create pipe pipe2 pread64 preadv
    preadv2 pwrite64 pwritev pwritev2 read readv sendfile sendfile64 splice tee vmsplice write writev
    ",
    // Waiting for descriptors.
    "
    _newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
    epoll_wait_old eventfd eventfd2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
    ",
    // The older asynchronous input and output; io_uring is left out, as in Docker's profile.
    "
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
    ",
    // Address spaces.
    "
    brk madvise map_shadow_stack membarrier memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect
    mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease
    remap_file_pages
    ",
    // Life of processes and threads. `ptrace` and its kin are here: since Linux 4.8 they cannot get around a filter.
    "
    capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv
    futex_wake get_robust_list get_thread_area getpgid getpgrp getpid getppid getrlimit getrusage getsid
    gettid landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr lsm_list_modules
    lsm_set_self_attr pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace
    restart_syscall riscv_hwprobe rseq rseq_slice_yield seccomp set_robust_list set_thread_area
    set_tid_address setpgid setrlimit setsid ugetrlimit uretprobe uprobe vfork wait4 waitid waitpid
    ",
    // Users and groups.
    "
    getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid
    getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32
    ",
    // Priorities and processors.
    "
    getcpu getpriority ioprio_get ioprio_set nice sched_get_priority_max sched_get_priority_min
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
    setpriority
    ",
    // Signals.
    "
    kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaction sigaltstack signal sigpending
    sigprocmask sigreturn sigsuspend tgkill tkill
    ",
    // Reading clocks, and waiting. `adjtimex` and `clock_adjtime` without CAP_SYS_TIME only read.
    "
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
    times
    ",
    // Sockets, but for `socket` itself.
    "
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
    ",
    // System V IPC and POSIX message queues: the pod has a namespace of its own for them.
    "
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64
    shmat shmctl shmdt shmget
    ",
    // Facts of the node that anyone may read.
    "
    getrandom olduname oldolduname sysinfo uname
    ",
];

/// Calls that one architecture alone has.
fn of_machine(machine: Machine) -> &'static str {
    match machine {
        Machine::X86_64 => "arch_prctl modify_ldt",
        Machine::Aarch64 => "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls",
        Machine::S390x => {
            "s390_guarded_storage s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr s390_sthyi"
        }
        Machine::Other => "",
    }
}

/// Calls that are allowed with a capability. One that stands under several needs only one of them.
const GUARDED: &[(&str, &str)] = &[
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    ("SYS_ADMIN", "
         bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount listns lookup_dcookie mount
         mount_setattr move_mount open_tree open_tree_attr perf_event_open pivot_root quotactl quotactl_fd
         setdomainname sethostname setns statmount syslog umount umount2 unshare
         "),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_NICE", "
         get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node
         "),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYSLOG", "syslog"),
];

/// Never allowed, and known well enough that a program should hear a plain refusal. What kernels may lack anyway
/// (io_uring, the calls of old module loaders) is not here: ENOSYS is an answer that its users are prepared for.
const REFUSED: &str =
    "add_key kexec_file_load kexec_load keyctl request_key swapoff swapon userfaultfd";

/// The flags of clone(2) that make a namespace: NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWNS. NEWTIME is
/// not among them: its bit means something else in clone.
const CLONE_NAMESPACES: &[u64] = &[
    0x0200_0000,
    0x0400_0000,
    0x0800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
    0x0002_0000,
];

/// Execution domains (personality(2)): Linux, its 32-bit form, both with UNAME26, and the question which one it is.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Sockets to the hypervisor lead past the pod's network. On x86 `socketcall` stays open, whose arguments no filter can
/// see; a refusal by a second rule would collide with it.
const AF_VSOCK: u64 = 40;

/// The filter for a container with these capabilities.
pub(super) fn profile(machine: Machine, held: CapabilitySet) -> LinuxSeccomp {
    let mut allowed: Vec<&str> = ALLOWED
        .iter()
        .copied()
        .flat_map(words)
        .chain(words(of_machine(machine)))
        .collect();
    let mut refused: Vec<&str> = words(REFUSED).collect();
    for (capability, names) in GUARDED {
        let list = if held.has(capability) {
            &mut allowed
        } else {
            &mut refused
        };
        list.extend(words(names));
    }
    // Under two capabilities, of which one is held; and the calls that have rules of their own below.
    refused.retain(|name| !allowed.contains(name) && !matches!(*name, "clone" | "clone3"));
    allowed.sort_unstable();
    allowed.dedup();
    refused.sort_unstable();
    refused.dedup();

    let mut syscalls = vec![
        rule(&allowed, LinuxSeccompAction::ScmpActAllow, None, &[]),
        rule(&refused, LinuxSeccompAction::ScmpActErrno, Some(EPERM), &[]),
        only_if(
            "socket",
            argument(0, LinuxSeccompOperator::ScmpCmpNe, AF_VSOCK, 0),
        ),
    ];
    let personality = |value: &u64| {
        only_if(
            "personality",
            argument(0, LinuxSeccompOperator::ScmpCmpEq, *value, 0),
        )
    };
    syscalls.extend(PERSONALITIES.iter().map(personality));
    if !held.has("SYS_ADMIN") {
        syscalls.extend(clone_without_namespaces(machine));
    }

    let mut filter = LinuxSeccomp::default();
    filter
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(ENOSYS))
        .set_architectures(Some(machine.architectures()))
        .set_syscalls(Some(syscalls));
    filter
}

fn words(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.split_ascii_whitespace()
}

/// `clone` for threads and children, but not for namespaces. `clone3` has its flags in memory, where a filter cannot
/// look; ENOSYS sends the C libraries back to `clone`.
fn clone_without_namespaces(machine: Machine) -> Vec<LinuxSyscall> {
    // s390 has the first two arguments of clone the other way round.
    let flags = if machine == Machine::S390x { 1 } else { 0 };
    let any = CLONE_NAMESPACES.iter().fold(0, |any, flag| any | flag);
    let masked = |mask, value| argument(flags, LinuxSeccompOperator::ScmpCmpMaskedEq, mask, value);
    let mut rules = vec![
        only_if("clone", masked(any, 0)),
        rule(
            &["clone3"],
            LinuxSeccompAction::ScmpActErrno,
            Some(ENOSYS),
            &[],
        ),
    ];
    rules.extend(
        CLONE_NAMESPACES
            .iter()
            .map(|flag| refuse_if("clone", masked(*flag, *flag))),
    );
    rules
}

fn only_if(name: &str, argument: LinuxSeccompArg) -> LinuxSyscall {
    rule(&[name], LinuxSeccompAction::ScmpActAllow, None, &[argument])
}

fn refuse_if(name: &str, argument: LinuxSeccompArg) -> LinuxSyscall {
    rule(
        &[name],
        LinuxSeccompAction::ScmpActErrno,
        Some(EPERM),
        &[argument],
    )
}

fn rule(
    names: &[&str],
    action: LinuxSeccompAction,
    errno: Option<u32>,
    arguments: &[LinuxSeccompArg],
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect())
        .set_action(action)
        .set_errno_ret(errno)
        .set_args((!arguments.is_empty()).then(|| arguments.to_vec()));
    rule
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MACHINES: [Machine; 4] = [
        Machine::X86_64,
        Machine::Aarch64,
        Machine::S390x,
        Machine::Other,
    ];

    /// Names with an unconditional rule of the given kind.
    fn names(filter: &LinuxSeccomp, action: LinuxSeccompAction) -> Vec<String> {
        let rules = filter.syscalls().iter().flatten();
        rules
            .filter(|rule| rule.action() == action && rule.args().is_none())
            .flat_map(|rule| rule.names().clone())
            .collect()
    }

    fn allowed(filter: &LinuxSeccomp) -> Vec<String> {
        names(filter, LinuxSeccompAction::ScmpActAllow)
    }

    fn with(names: &[&str]) -> CapabilitySet {
        let bits = (0..64).filter(|number| {
            let one = CapabilitySet::from_bits(1 << number);
            names.iter().any(|name| one.has(name))
        });
        CapabilitySet::from_bits(bits.fold(0, |bits, number| bits | 1 << number))
    }

    #[test]
    fn no_call_has_two_unconditional_rules() {
        for machine in MACHINES {
            for held in [
                with(&[]),
                with(&["SYS_ADMIN"]),
                with(&["BPF", "SYSLOG"]),
                CapabilitySet::from_bits(u64::MAX),
            ] {
                let filter = profile(machine, held);
                let allowed: BTreeSet<_> = allowed(&filter).into_iter().collect();
                let refused = names(&filter, LinuxSeccompAction::ScmpActErrno);
                let once: BTreeSet<_> = refused.iter().cloned().collect();
                assert_eq!(refused.len(), once.len());
                assert_eq!(
                    allowed.intersection(&once).collect::<Vec<_>>(),
                    Vec::<&String>::new()
                );
                // A conditional rule beside an unconditional one of the same call would be void.
                for rule in filter
                    .syscalls()
                    .iter()
                    .flatten()
                    .filter(|rule| rule.args().is_some())
                {
                    assert!(
                        !allowed.contains(&rule.names()[0]) && !once.contains(&rule.names()[0])
                    );
                }
            }
        }
    }

    #[test]
    fn capabilities_open_their_calls() {
        for (capability, calls) in GUARDED {
            let filter = profile(Machine::X86_64, with(&[capability]));
            let allowed = allowed(&filter);
            for call in words(calls) {
                assert!(
                    allowed.iter().any(|name| name == call),
                    "{capability} {call}"
                );
            }
        }
        let bare = allowed(&profile(Machine::X86_64, with(&[])));
        for call in GUARDED
            .iter()
            .flat_map(|(_, calls)| words(calls))
            .chain(words(REFUSED))
        {
            assert!(!bare.iter().any(|name| name == call), "{call}");
        }
        for call in ["read", "ptrace", "execve", "arch_prctl"] {
            assert!(bare.iter().any(|name| name == call), "{call}");
        }
    }

    #[test]
    fn refused_calls_stay_refused_with_every_capability() {
        let filter = profile(Machine::X86_64, CapabilitySet::from_bits(u64::MAX));
        assert_eq!(
            names(&filter, LinuxSeccompAction::ScmpActErrno),
            words(REFUSED).collect::<Vec<_>>()
        );
    }

    #[test]
    fn clone_looks_at_the_right_argument() {
        for (machine, index) in [
            (Machine::X86_64, 0),
            (Machine::Aarch64, 0),
            (Machine::S390x, 1),
        ] {
            let filter = profile(machine, with(&[]));
            let rules: Vec<_> = filter
                .syscalls()
                .iter()
                .flatten()
                .filter(|rule| rule.names()[0] == "clone")
                .collect();
            assert_eq!(rules.len(), 8);
            for rule in rules {
                assert_eq!(rule.args().as_ref().unwrap()[0].index(), index);
            }
        }
    }

    #[test]
    fn architectures_start_with_the_native_one() {
        for machine in MACHINES {
            let filter = profile(machine, with(&[]));
            assert_eq!(
                filter.architectures().as_ref().unwrap().first(),
                Some(&machine.native())
            );
        }
    }
}
