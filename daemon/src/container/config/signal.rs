//! Names and numbers of signals, as image configurations and CRI write them.

/// Linux signal numbers (signal(7)) as they are on x86, Arm and z. The first name of a number is its usual one.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// SIGRTMIN as the C libraries give it to programs (they keep 32 and 33 for themselves).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of a signal that is written as `SIGTERM`, `term`, `15` or `SIGRTMIN+3`.
#[must_use]
pub fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse::<i32>().ok()
        }
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN + offset(rest)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        RTMAX + offset(rest)?
    } else {
        return SIGNALS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number);
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// The usual name of a signal: `SIGTERM` for `15`, `SIGRTMIN+3` for 37, `SIGRTMAX-1` for 63.
#[must_use]
pub fn canonical(text: &str) -> Option<String> {
    /// Up to this one signals are counted from the lower end, as kill(1) lists them.
    const LAST_FROM_MIN: i32 = 49;
    Some(match number(text)? {
        RTMIN => "SIGRTMIN".to_owned(),
        RTMAX => "SIGRTMAX".to_owned(),
        number @ RTMIN..=LAST_FROM_MIN => format!("SIGRTMIN+{}", number - RTMIN),
        number @ RTMIN..=RTMAX => format!("SIGRTMAX-{}", RTMAX - number),
        number => format!(
            "SIG{}",
            SIGNALS.iter().find(|(_, known)| *known == number)?.0
        ),
    })
}
