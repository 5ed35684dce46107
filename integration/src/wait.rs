//! Waiting for a condition, with a deadline and never longer than it takes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time that anything on a busy machine may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks.
const PERIOD: Duration = Duration::from_millis(5);

/// Looks until `look` gives something; after `patience` it fails, naming `what`.
///
/// # Errors
/// The deadline passed, or `look` failed.
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if start.elapsed() > patience {
            bail!("gave up after {:?} waiting for {what}", start.elapsed());
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// [`until`] for a condition that is true or not.
///
/// # Errors
/// The deadline passed.
pub async fn until_true(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> bool,
) -> Result<()> {
    until(what, patience, async || Ok(look().then_some(()))).await
}
