//! Tokens: what a URL stands for, once, for a minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::time::Instant;

use crate::limits::{MAX_PENDING_TOKENS, TOKEN_LIFE};
use crate::server::UrlError;

/// Random bits of a token: 120, so that the base64 has no rest.
const TOKEN_BYTES: usize = 15;

/// What waits for its client, by token.
#[derive(Debug)]
pub(crate) struct Tokens<T> {
    pending: Mutex<HashMap<String, Pending<T>>>,
    life: Duration,
}

#[derive(Debug)]
struct Pending<T> {
    what: T,
    until: Instant,
}

impl<T> Tokens<T> {
    pub(crate) fn new() -> Self {
        Self {
            pending: Mutex::new(HashMap::new()),
            life: TOKEN_LIFE,
        }
    }

    /// A new token for `what`. Old ones are forgotten when there is no more room: there is no timer.
    pub(crate) fn insert(&self, what: T) -> Result<String, UrlError> {
        let mut random = [0; TOKEN_BYTES];
        let filled = getrandom(&mut random, GetRandomFlags::empty());
        if filled != Ok(TOKEN_BYTES) {
            return Err(UrlError::NoRandomness);
        }
        let token = URL_SAFE_NO_PAD.encode(random);
        let now = Instant::now();
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.len() >= MAX_PENDING_TOKENS {
            pending.retain(|_, entry| entry.until > now);
            if pending.len() >= MAX_PENDING_TOKENS {
                return Err(UrlError::Full {
                    pending: pending.len(),
                });
            }
        }
        pending.insert(
            token.clone(),
            Pending {
                what,
                until: now + self.life,
            },
        );
        Ok(token)
    }

    /// What the token stands for; it is used up with that. A lookup in a hash map with a random key tells a guesser
    /// nothing by its time.
    pub(crate) fn take(&self, token: &str) -> Option<T> {
        let entry = self
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(token)?;
        (entry.until > Instant::now()).then_some(entry.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_good_once() {
        let tokens = Tokens::new();
        let token = tokens.insert(7).unwrap();
        assert!(token.len() * 6 >= 64, "{token}");
        assert_eq!(tokens.take("guess"), None);
        assert_eq!(tokens.take(&token), Some(7));
        assert_eq!(tokens.take(&token), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_lives_a_minute() {
        let tokens = Tokens::new();
        let (early, late) = (tokens.insert(1).unwrap(), tokens.insert(2).unwrap());
        tokio::time::advance(TOKEN_LIFE - Duration::from_millis(1)).await;
        assert_eq!(tokens.take(&early), Some(1));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(tokens.take(&late), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_is_bounded_and_old_ones_make_room() {
        let tokens = Tokens::new();
        for n in 0..MAX_PENDING_TOKENS {
            tokens.insert(n).unwrap();
        }
        assert_eq!(
            tokens.insert(0),
            Err(UrlError::Full {
                pending: MAX_PENDING_TOKENS
            })
        );
        tokio::time::advance(TOKEN_LIFE).await;
        tokens.insert(0).unwrap();
    }
}
