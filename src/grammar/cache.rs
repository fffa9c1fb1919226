//! [`GrammarCache`]: the grammars compiled last, by what they were compiled from.

use std::collections::HashMap;

use quire_scheduler::Grammar;

/// Grammars kept. An application asks for the same few again and again.
const MAX_ENTRIES: usize = 64;
/// Bytes of the keys. A compiled grammar is some tens of times its source.
const MAX_KEY_BYTES: usize = 1 << 20;

/// The least recently used is dropped first.
#[derive(Debug, Default)]
pub(super) struct GrammarCache {
    entries: HashMap<String, Entry>,
    key_bytes: usize,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    grammar: Grammar,
    used: u64,
}

impl GrammarCache {
    pub(super) fn get(&mut self, key: &str) -> Option<Grammar> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(entry.grammar.clone())
    }

    pub(super) fn insert(&mut self, key: String, grammar: Grammar) {
        self.clock += 1;
        self.key_bytes += key.len();
        let entry = Entry { grammar, used: self.clock };
        let len = key.len();
        if self.entries.insert(key, entry).is_some() {
            self.key_bytes -= len;
        }
        while self.entries.len() > MAX_ENTRIES || self.key_bytes > MAX_KEY_BYTES {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.entries.remove(&key);
            self.key_bytes -= key.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grammar() -> Grammar {
        Grammar::new(|| unreachable!("nothing is generated here"))
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = GrammarCache::default();
        (0..MAX_ENTRIES).for_each(|i| cache.insert(i.to_string(), grammar()));
        assert!(cache.get("0").is_some());
        cache.insert("new".into(), grammar());
        assert!(cache.get("0").is_some() && cache.get("1").is_none() && cache.get("2").is_some());
    }

    #[test]
    fn invariant_7_the_cache_is_bounded_in_entries_and_bytes() {
        let mut cache = GrammarCache::default();
        for i in 0..10 * MAX_ENTRIES {
            cache.insert(format!("{i:>50000}"), grammar());
            cache.insert(i.to_string(), grammar());
            cache.insert(i.to_string(), grammar());
            assert_eq!(cache.key_bytes, cache.entries.keys().map(String::len).sum::<usize>());
            assert!(cache.entries.len() <= MAX_ENTRIES && cache.key_bytes <= MAX_KEY_BYTES);
        }
        cache.insert("x".repeat(2 * MAX_KEY_BYTES), grammar());
        assert_eq!((cache.entries.len(), cache.key_bytes), (0, 0));
    }
}
