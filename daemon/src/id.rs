//! Ids of pods and containers: 64 hexadecimal digits, 256 random bits.

use std::fmt;

/// Number of digits of a whole id.
const LENGTH: usize = 64;

macro_rules! id_type {
    ($name:ident, $what:literal) => {
        #[doc = concat!("Id of a ", $what, ".")]
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// A new id that no other has.
            pub fn random() -> Self {
                Self(random_hex())
            }

            /// Takes a whole id as it stands in a record; `None` if it is not one.
            pub fn parse(text: &str) -> Option<Self> {
                is_whole(text).then(|| Self(text.into()))
            }

            /// The digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id_type!(PodId, "pod sandbox");
id_type!(ContainerId, "container");

fn is_whole(text: &str) -> bool {
    text.len() == LENGTH && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn random_hex() -> Box<str> {
    let mut bytes = [0u8; LENGTH / 2];
    let mut filled = 0;
    while filled < bytes.len() {
        // Only EINTR can be the answer here: the pool is filled long before a daemon starts.
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags).unwrap_or(0);
    }
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<String>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_whole_and_differ() {
        let (a, b) = (PodId::random(), PodId::random());
        assert_ne!(a, b);
        assert_eq!(PodId::parse(a.as_str()), Some(a));
        for wrong in ["", "abc", &"G".repeat(64), &"a".repeat(65), "../../../etc"] {
            assert_eq!(ContainerId::parse(wrong), None, "{wrong}");
        }
    }
}
