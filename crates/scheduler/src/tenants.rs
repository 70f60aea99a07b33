//! How much has each tenant had, and who is owed the most?
//!
//! Tenants share by start-time fair queueing: an account counts the tokens computed for a tenant,
//! and whoever has the lowest account goes first. A newcomer, and one that comes back, starts where
//! the lowest of those here is: nobody saves up for later, and by leaving nobody gets rid of what
//! was computed beyond its share. (P. Goyal, H. Vin, H. Cheng: Start-time Fair Queueing, 1996.)

use std::sync::Arc;

/// Accounts of tenants that left with more than their share; beyond so many the lowest is
/// forgotten. An account takes some 50 bytes.
const DEBTORS_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccountIndex(usize);

#[derive(Clone, Debug, Default)]
pub(crate) struct Tenants {
    accounts: Vec<Account>,
    /// The lowest account of those here, as it was last needed; never falls.
    reached: u64,
    /// Numbers arrivals of tenants and admissions of their sequences.
    turns: u64,
}

#[derive(Clone, Debug)]
struct Account {
    tenant: Arc<str>,
    computed: u64,
    /// Prompt tokens that its admitted sequences have not computed yet.
    claimed: u64,
    /// Sequences here, waiting or running.
    sequences: usize,
    /// When it came or had a sequence admitted last.
    last_turn: u64,
}

impl Tenants {
    /// A sequence of the tenant arrives.
    pub(crate) fn enter(&mut self, tenant: &Arc<str>) -> AccountIndex {
        let here = self.accounts.iter().filter(|account| account.sequences > 0);
        let lowest = here.map(|account| account.computed).min();
        // With nobody here there is nobody to be fair to: all debts end.
        let highest = self.accounts.iter().map(|account| account.computed).max();
        self.reached = self.reached.max(lowest.or(highest).unwrap_or(0));
        let index = self.place(tenant);
        self.turns += 1;
        let account = &mut self.accounts[index];
        if account.sequences == 0 {
            account.computed = account.computed.max(self.reached);
            account.last_turn = self.turns;
        }
        account.sequences += 1;
        AccountIndex(index)
    }

    /// The tenant's account, or one that nobody needs any more.
    fn place(&mut self, tenant: &Arc<str>) -> usize {
        if let Some(own) = self.accounts.iter().position(|account| account.tenant == *tenant) {
            return own;
        }
        let (computed, claimed, sequences, last_turn) = (0, 0, 0, 0);
        let tenant = Arc::clone(tenant);
        let new = Account { tenant, computed, claimed, sequences, last_turn };
        let idle = self.accounts.iter().enumerate().filter(|(_, account)| account.sequences == 0);
        let idle_count = idle.clone().count();
        let lowest = idle.min_by_key(|(_, account)| account.computed).map(|(index, _)| index);
        match lowest {
            Some(index)
                if self.accounts[index].computed <= self.reached || idle_count >= DEBTORS_MAX =>
            {
                self.accounts[index] = new;
                index
            }
            _ => {
                self.accounts.push(new);
                self.accounts.len() - 1
            }
        }
    }

    /// A sequence ends.
    pub(crate) fn leave(&mut self, index: AccountIndex) {
        let account = &mut self.accounts[index.0];
        assert!(account.sequences > 0, "a sequence leaves its account once");
        account.sequences -= 1;
    }

    /// One of its sequences is admitted.
    pub(crate) fn take_turn(&mut self, index: AccountIndex) {
        self.turns += 1;
        self.accounts[index.0].last_turn = self.turns;
    }

    /// The lower, the longer it is since one of its sequences was admitted.
    pub(crate) fn last_turn(&self, index: AccountIndex) -> u64 {
        self.accounts[index.0].last_turn
    }

    /// Tokens are about to be computed for the tenant.
    pub(crate) fn charge(&mut self, index: AccountIndex, tokens: u32) {
        self.accounts[index.0].computed += u64::from(tokens);
    }

    pub(crate) fn computed(&self, index: AccountIndex) -> u64 {
        self.accounts[index.0].computed
    }

    /// What is computed and what its admitted prompts will take: who is admitted next.
    pub(crate) fn spoken_for(&self, index: AccountIndex) -> u64 {
        let account = &self.accounts[index.0];
        account.computed + account.claimed
    }

    /// The same for a tenant whose next sequence is only about to come.
    pub(crate) fn spoken_for_newcomer(&self, tenant: &Arc<str>) -> u64 {
        let here = self.accounts.iter().filter(|account| account.sequences > 0);
        let lowest = here.map(|account| account.computed).min();
        let reached = self.reached.max(lowest.unwrap_or(0));
        let own = self.accounts.iter().find(|account| account.tenant == *tenant);
        match own {
            Some(own) if own.sequences > 0 => own.computed + own.claimed,
            Some(own) => own.computed.max(reached),
            None => reached,
        }
    }

    pub(crate) fn forget_claims(&mut self) {
        self.accounts.iter_mut().for_each(|account| account.claimed = 0);
    }

    pub(crate) fn claim(&mut self, index: AccountIndex, tokens: u32) {
        self.accounts[index.0].claimed += u64::from(tokens);
    }

    /// Tenants with a sequence here.
    pub(crate) fn count(&self) -> usize {
        self.accounts.iter().filter(|account| account.sequences > 0).count()
    }

    /// # Panics
    /// When an account counts other sequences than those whose accounts are `of_sequences`.
    pub(crate) fn audit(&self, of_sequences: impl Iterator<Item = AccountIndex>) {
        let mut counts = vec![0; self.accounts.len()];
        of_sequences.for_each(|index| counts[index.0] += 1);
        for (account, count) in self.accounts.iter().zip(counts) {
            assert_eq!(account.sequences, count, "sequences of tenant {:?}", account.tenant);
        }
        let idle = self.accounts.iter().filter(|account| account.sequences == 0).count();
        let most = DEBTORS_MAX.max(self.accounts.len() - idle) + self.accounts.len() - idle;
        assert!(idle <= most, "accounts of tenants that left pile up");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    #[test]
    fn a_newcomer_starts_at_the_lowest_of_those_here() {
        let mut tenants = Tenants::default();
        let (one, two) = (tenants.enter(&tenant("one")), tenants.enter(&tenant("two")));
        tenants.charge(one, 500);
        tenants.charge(two, 300);
        let three = tenants.enter(&tenant("three"));
        assert_eq!(tenants.computed(three), 300);
        // Leaving and coming back changes nothing for one that had more than its share.
        tenants.leave(one);
        let again = tenants.enter(&tenant("one"));
        assert_eq!(tenants.computed(again), 500);
        // One that had less has not saved it up.
        tenants.charge(two, 700);
        tenants.leave(three);
        tenants.charge(again, 600);
        let three = tenants.enter(&tenant("three"));
        assert_eq!(tenants.computed(three), 1000);
    }

    #[test]
    fn accounts_of_strangers_do_not_pile_up() {
        let mut tenants = Tenants::default();
        let stays = tenants.enter(&tenant("stays"));
        for number in 0..2000 {
            let stranger = tenants.enter(&tenant(&number.to_string()));
            tenants.charge(stranger, 1_000_000);
            tenants.leave(stranger);
        }
        assert!(tenants.accounts.len() <= DEBTORS_MAX + 2, "{}", tenants.accounts.len());
        tenants.audit(std::iter::once(stays));
    }
}
