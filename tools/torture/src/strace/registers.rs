//! The registers of a thread at the entry or the exit of a system call.

use nix::sys::ptrace;
use nix::unistd::Pid;

/// Why system calls cannot be watched on this architecture, if they cannot.
pub(super) fn lack() -> Option<&'static str> {
    cfg!(not(target_arch = "x86_64")).then_some("its registers are known on x86-64 only")
}

/// The registers of a stopped thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers(nix::libc::user_regs_struct);

impl Registers {
    pub(super) fn of(thread: Pid) -> nix::Result<Registers> {
        ptrace::getregs(thread).map(Registers)
    }

    pub(super) fn store(&self, thread: Pid) -> nix::Result<()> {
        ptrace::setregs(thread, self.0)
    }
}

#[cfg(target_arch = "x86_64")]
impl Registers {
    pub(super) fn number(&self) -> i64 {
        self.0.orig_rax.cast_signed()
    }

    /// One of the first five arguments.
    pub(super) fn argument(&self, nth: usize) -> u64 {
        [self.0.rdi, self.0.rsi, self.0.rdx, self.0.r10, self.0.r8][nth]
    }

    pub(super) fn set_argument_1(&mut self, value: u64) {
        self.0.rsi = value;
    }

    /// The kernel does not know this number, and does nothing.
    pub(super) fn leave_out(&mut self) {
        self.0.orig_rax = u64::MAX;
    }

    pub(super) fn answer(&self) -> i64 {
        self.0.rax.cast_signed()
    }

    pub(super) fn set_answer(&mut self, answer: i64) {
        self.0.rax = answer.cast_unsigned();
    }
}

/// Never used: see [`lack`].
#[cfg(not(target_arch = "x86_64"))]
impl Registers {
    pub(super) fn number(&self) -> i64 {
        -1
    }

    pub(super) fn argument(&self, _nth: usize) -> u64 {
        0
    }

    pub(super) fn set_argument_1(&mut self, _value: u64) {}

    pub(super) fn leave_out(&mut self) {}

    pub(super) fn answer(&self) -> i64 {
        0
    }

    pub(super) fn set_answer(&mut self, _answer: i64) {}
}
