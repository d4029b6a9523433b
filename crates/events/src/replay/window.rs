//! The messages of one partition that were delivered and not yet applied, in the order of their numbers.

use std::collections::BTreeMap;

/// Keeps deliveries until their turn has come. Numbers below the next one are duplicates and fall away.
#[derive(Debug)]
pub struct Window<T> {
    next: i64,
    waiting: BTreeMap<i64, (u64, T)>,
    newest_tag: u64,
    acked: u64,
}

impl<T> Window<T> {
    /// A window whose first event is `next`.
    pub fn new(next: i64) -> Self {
        Window { next, waiting: BTreeMap::new(), newest_tag: 0, acked: 0 }
    }

    /// Takes a delivery. Returns whether it is of use: not a duplicate.
    pub fn take(&mut self, number: i64, tag: u64, event: T) -> bool {
        self.newest_tag = self.newest_tag.max(tag);
        if number < self.next || self.waiting.contains_key(&number) {
            return false;
        }
        self.waiting.insert(number, (tag, event));
        true
    }

    /// The events whose turn it is, at most `limit`, gapless from the next one.
    pub fn ready(&self, limit: usize) -> Vec<&T> {
        (self.next..)
            .zip(&self.waiting)
            .take_while(|(expected, (number, _))| expected == *number)
            .take(limit)
            .map(|(_, (_, (_, event)))| event)
            .collect()
    }

    /// The first `count` of what was ready is done with.
    pub fn advance(&mut self, count: usize) {
        for _ in 0..count {
            self.waiting.remove(&self.next);
            self.next += 1;
        }
    }

    /// The next number.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// Up to which tag everything is done with, if that is news.
    pub fn ackable(&mut self) -> Option<u64> {
        let tag = match self.waiting.values().map(|(tag, _)| *tag).min() {
            Some(oldest) => oldest - 1,
            None => self.newest_tag,
        };
        (tag > self.acked).then(|| {
            self.acked = tag;
            tag
        })
    }

    /// Whether events wait behind one that is not here.
    pub fn has_gap(&self) -> bool {
        self.waiting.keys().next().is_some_and(|first| *first > self.next)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Throws away what waits; it can all be acknowledged then.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_holds_back_what_lies_beyond_it() {
        let mut window = Window::new(1);
        assert!(window.take(2, 1, 2) && window.take(3, 2, 3));
        assert!(window.has_gap() && window.ready(10).is_empty());
        assert_eq!(window.ackable(), None);
        assert!(window.take(1, 3, 1));
        assert!(!window.take(2, 4, 2), "a duplicate");
        assert_eq!(window.ready(2).len(), 2);
        window.advance(2);
        assert_eq!(window.ackable(), Some(1), "the third event still waits under tag 2");
        window.advance(1);
        assert_eq!((window.ackable(), window.ackable()), (Some(4), None));
        assert!(!window.take(3, 5, 3), "an old number");
        assert_eq!(window.ackable(), Some(5));
    }

    proptest! {
        #[test]
        fn each_number_is_ready_once_and_in_order(numbers in prop::collection::vec(1_i64..40, 0..200)) {
            let mut window = Window::new(1);
            let mut seen: Vec<i64> = Vec::new();
            let mut held = std::collections::BTreeSet::new();
            let mut take_ready = |window: &mut Window<i64>| {
                let ready: Vec<i64> = window.ready(7).into_iter().copied().collect();
                window.advance(ready.len());
                seen.extend(&ready);
                ready.len()
            };
            for (tag, number) in (1..).zip(&numbers) {
                window.take(*number, tag, *number);
                held.insert(*number);
                take_ready(&mut window);
                // Nothing is acknowledged that is still waiting.
                let oldest = window.waiting.values().map(|(tag, _)| *tag).min();
                if let (Some(acked), Some(oldest)) = (window.ackable(), oldest) {
                    prop_assert!(acked < oldest);
                }
            }
            while take_ready(&mut window) > 0 {}
            let gapless: Vec<i64> = (1..).zip(&held).take_while(|(a, b)| a == *b).map(|(a, _)| a).collect();
            prop_assert_eq!(&seen, &gapless);
            prop_assert_eq!(window.len(), held.len() - gapless.len(), "what waits lies beyond the first gap");
        }
    }
}
