//! What a driver's request is for, as its `user` value.
//!
//! Knows: three numbers. Must never know: what they count.

/// Whose request, which of its jobs, which piece of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    pub client: u32,
    pub job: u16,
    pub piece: u16,
}

impl Ticket {
    pub fn to_user(self) -> u64 {
        debug_assert!(self.client >> 31 == 0, "the highest bit is the control's");
        u64::from(self.client) << 32 | u64::from(self.job) << 16 | u64::from(self.piece)
    }

    pub fn of_user(user: u64) -> Ticket {
        Ticket { client: (user >> 32) as u32, job: (user >> 16) as u16, piece: user as u16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_comes_back() {
        let ticket = Ticket { client: (u32::MAX >> 1) - 1, job: 300, piece: u16::MAX };
        assert_eq!(Ticket::of_user(ticket.to_user()), ticket);
    }
}
