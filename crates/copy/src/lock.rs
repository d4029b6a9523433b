//! Mutexes whose holders may have broken off.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is behind it, whatever became of a thread that held it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
