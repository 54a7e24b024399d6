//! Which changes a watcher wants, and whom a change concerns.
//!
//! [`Registry`] finds the watchers that a changed key concerns without asking every watcher: those of one key in a map,
//! those of a prefix in one map for each length of prefix that is watched. Only bounded ranges are compared one by one,
//! and equal ones once for all their watchers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::slot::Slot;

/// Of which keys the changes are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Of this key.
    Key(Bytes),
    /// Of the keys that begin so.
    Prefix(Bytes),
    /// Of the keys from `start` on, up to and without `end`.
    Range {
        /// The first key.
        start: Bytes,
        /// The first key that is not wanted any more; none for the end of all keys.
        end: Option<Bytes>,
    },
}

impl Scope {
    /// Of all keys.
    pub fn all() -> Scope {
        Scope::Prefix(Bytes::new())
    }

    /// Whether changes of this key are wanted.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Scope::Key(wanted) => wanted == key,
            Scope::Prefix(prefix) => key.starts_with(prefix),
            Scope::Range { start, end } => key >= &start[..] && end.as_ref().is_none_or(|end| key < &end[..]),
        }
    }
}

/// Which kinds of changes are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// All.
    All,
    /// Only keys that were written.
    Puts,
    /// Only keys that were deleted.
    Deletes,
}

impl Kinds {
    /// Whether a put, or else a deletion, is wanted.
    pub fn contain(self, is_put: bool) -> bool {
        match self {
            Kinds::All => true,
            Kinds::Puts => is_put,
            Kinds::Deletes => !is_put,
        }
    }
}

/// The watchers of one scope.
#[derive(Debug, Default)]
struct Group {
    slots: HashMap<u64, Arc<Slot>>,
    /// The last batch whose changes were found to concern it.
    marked: u64,
}

/// All watchers, by what they watch.
#[derive(Debug, Default)]
pub struct Registry {
    keys: HashMap<Bytes, Group>,
    prefixes: BTreeMap<usize, HashMap<Bytes, Group>>,
    ranges: HashMap<(Bytes, Option<Bytes>), Group>,
    next_id: u64,
    count: usize,
    marks: u64,
}

impl Registry {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Adds a watcher; gives the id by which it is removed.
    pub fn add(&mut self, scope: &Scope, slot: Arc<Slot>) -> u64 {
        self.next_id += 1;
        self.count += 1;
        let group = match scope {
            Scope::Key(key) => self.keys.entry(key.clone()).or_default(),
            Scope::Prefix(prefix) => {
                let same_length = self.prefixes.entry(prefix.len()).or_default();
                same_length.entry(prefix.clone()).or_default()
            }
            Scope::Range { start, end } => self.ranges.entry((start.clone(), end.clone())).or_default(),
        };
        group.slots.insert(self.next_id, slot);
        self.next_id
    }

    /// Removes a watcher, if it is still there.
    pub fn remove(&mut self, scope: &Scope, id: u64) {
        let removed = match scope {
            Scope::Key(key) => remove_from(&mut self.keys, key, id),
            Scope::Prefix(prefix) => match self.prefixes.get_mut(&prefix.len()) {
                None => false,
                Some(same_length) => {
                    let removed = remove_from(same_length, prefix, id);
                    if same_length.is_empty() {
                        self.prefixes.remove(&prefix.len());
                    }
                    removed
                }
            },
            Scope::Range { start, end } => remove_from(&mut self.ranges, &(start.clone(), end.clone()), id),
        };
        self.count -= usize::from(removed);
    }

    /// Gives every watcher that one of the keys concerns to `tell`, once; says how many these are.
    pub fn concerned<'k>(&mut self, keys: impl Iterator<Item = &'k [u8]>, tell: impl Fn(&Slot)) -> usize {
        self.marks += 1;
        let mark = self.marks;
        let mut told = 0;
        let mut tell_group = |group: &mut Group| {
            if group.marked != mark {
                group.marked = mark;
                told += group.slots.len();
                group.slots.values().for_each(|slot| tell(slot));
            }
        };
        for key in keys {
            if let Some(group) = self.keys.get_mut(key) {
                tell_group(group);
            }
            for (length, same_length) in self.prefixes.range_mut(..=key.len()) {
                if let Some(group) = same_length.get_mut(&key[..*length]) {
                    tell_group(group);
                }
            }
            for ((start, end), group) in &mut self.ranges {
                if group.marked != mark && key >= &start[..] && end.as_ref().is_none_or(|end| key < &end[..]) {
                    tell_group(group);
                }
            }
        }
        told
    }

    /// Removes the watchers of whom `is_over` says so.
    pub fn remove_if(&mut self, is_over: impl Fn(&Slot) -> bool) {
        let mut removed = 0;
        let mut keep_group = |group: &mut Group| {
            let before = group.slots.len();
            group.slots.retain(|_, slot| !is_over(slot));
            removed += before - group.slots.len();
            !group.slots.is_empty()
        };
        self.keys.retain(|_, group| keep_group(group));
        self.ranges.retain(|_, group| keep_group(group));
        self.prefixes.retain(|_, same_length| {
            same_length.retain(|_, group| keep_group(group));
            !same_length.is_empty()
        });
        self.count -= removed;
    }

    /// Gives every watcher to `tell`.
    pub fn for_each(&self, tell: impl Fn(&Slot)) {
        let prefixes = self.prefixes.values().flat_map(HashMap::values);
        for group in self.keys.values().chain(prefixes).chain(self.ranges.values()) {
            group.slots.values().for_each(|slot| tell(slot));
        }
    }
}

fn remove_from<K: std::hash::Hash + Eq>(groups: &mut HashMap<K, Group>, key: &K, id: u64) -> bool {
    let Some(group) = groups.get_mut(key) else { return false };
    let removed = group.slots.remove(&id).is_some();
    if group.slots.is_empty() {
        groups.remove(key);
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes() -> Vec<Scope> {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        let texts = ["", "a", "ab", "abc", "b", "ba"];
        let mut scopes: Vec<Scope> = Vec::new();
        for text in texts {
            scopes.extend([Scope::Key(bytes(text)), Scope::Prefix(bytes(text))]);
            scopes.push(Scope::Range { start: bytes(text), end: None });
            scopes.extend(texts.map(|end| Scope::Range { start: bytes(text), end: Some(bytes(end)) }));
        }
        // Some are watched by several.
        scopes.extend(scopes.clone().into_iter().step_by(3));
        scopes
    }

    /// The places in the list of those whom one of the keys concerns; every one is told once.
    fn told(registry: &mut Registry, slots: &[Arc<Slot>], keys: &[&[u8]]) -> Vec<usize> {
        let told = parking_lot::Mutex::new(Vec::new());
        let count = registry.concerned(keys.iter().copied(), |slot| {
            told.lock().push(slots.iter().position(|known| std::ptr::eq(&**known, slot)).unwrap());
        });
        let mut told = told.into_inner();
        assert_eq!(told.len(), count);
        told.sort_unstable();
        told
    }

    #[test]
    fn those_are_told_whose_scope_contains_a_key() {
        let scopes = scopes();
        let mut registry = Registry::default();
        let slots: Vec<_> = scopes.iter().map(|_| Arc::new(Slot::default())).collect();
        let ids: Vec<_> = scopes.iter().zip(&slots).map(|(scope, slot)| registry.add(scope, slot.clone())).collect();
        let questions: [&[&[u8]]; 6] = [&[], &[b""], &[b"a"], &[b"abc", b"abc"], &[b"b", b"az"], &[b"\xff\xff"]];
        for keys in questions {
            let expected: Vec<usize> =
                (0..scopes.len()).filter(|at| keys.iter().any(|key| scopes[*at].contains(key))).collect();
            assert_eq!(told(&mut registry, &slots, keys), expected, "{keys:?}");
        }
        assert_eq!(registry.len(), scopes.len());
        slots[0].end(super::super::Ending::Slow);
        registry.remove_if(|slot| slot.ending().is_some());
        assert_eq!(told(&mut registry, &slots, &[b""]).first(), Some(&1));
        for (at, (scope, id)) in scopes.iter().zip(ids).enumerate() {
            registry.remove(scope, id);
            registry.remove(scope, id);
            assert_eq!(registry.len(), (scopes.len() - 1).min(scopes.len() - at - 1), "nothing is removed twice");
        }
        assert!(registry.keys.is_empty() && registry.prefixes.is_empty() && registry.ranges.is_empty());
    }
}
