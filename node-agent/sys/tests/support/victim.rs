//! What the victim does.

use std::arch::asm;
use std::io::BufRead;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const THREADS: usize = 7;
static COUNTERS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];
/// -EINTR answers of the two calls that give it at every stop, were it SIGSTOP's.
static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
static BAD: Mutex<Vec<String>> = Mutex::new(Vec::new());

const NAP: Duration = Duration::from_millis(15);
const TOO_LONG: Duration = Duration::from_millis(1500);

fn bad(what: String) {
    let mut all = BAD.lock().unwrap();
    if all.len() < 5 {
        all.push(what);
    }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn sigmask() -> u64 {
    let mut mask = 0u64;
    let null: *const u64 = std::ptr::null();
    // SAFETY: asks for the mask alone, into a live integer of the size given.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, 0, null, &raw mut mask, 8) };
    mask
}

fn set_sigmask(mask: u64) {
    let null: *mut u64 = std::ptr::null_mut();
    // SAFETY: reads a live integer of the size given; a blocked signal breaks nothing here.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, 2, &raw const mask, null, 8) };
}

/// Runs `once` for ever; it says by name when a wait ended wrongly.
fn worker(
    index: usize,
    mask: u64,
    timed: bool,
    mut once: impl FnMut() -> Result<(), String> + Send + 'static,
) {
    std::thread::spawn(move || {
        set_sigmask(mask);
        loop {
            let start = Instant::now();
            if let Err(what) = once() {
                bad(format!("thread {index}: {what}"));
            }
            let slept = start.elapsed();
            if timed && !(NAP..TOO_LONG).contains(&slept) {
                bad(format!("thread {index} slept {slept:?}"));
            }
            if sigmask() != mask {
                bad(format!("thread {index} has mask {:#x}", sigmask()));
            }
            COUNTERS[index].fetch_add(1, Ordering::Relaxed);
        }
    });
}

fn nap() -> libc::timespec {
    libc::timespec { tv_sec: 0, tv_nsec: i64::try_from(NAP.as_nanos()).unwrap() }
}

fn expect(call: &str, answer: i64, want: i64, want_errno: i32) -> Result<(), String> {
    if answer == want && (want >= 0 || errno() == want_errno) {
        return Ok(());
    }
    Err(format!("{call} returned {answer} errno {}", errno()))
}

/// As `expect`; -EINTR is counted instead, and the rest of the time slept.
fn stoppable(call: &str, answer: i64, want: i64, want_errno: i32) -> Result<(), String> {
    if answer == -1 && errno() == libc::EINTR {
        INTERRUPTED.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(NAP);
        return Ok(());
    }
    expect(call, answer, want, want_errno)
}

/// All registers filled, kept over a long loop, compared.
fn spin() -> Result<(), String> {
    let [a, c, d, r8, r9, r10, r11, r12, r13, r14, r15, x]: [u64; 12];
    let flags: u64;
    // SAFETY: registers only, all declared; the direction flag is cleared again.
    unsafe {
        asm!(
            "movq xmm9, rax",
            "std",
            "mov eax, 0x7f", "add al, 1", "stc",
            "2:", "lea rcx, [rcx - 1]", "jrcxz 3f", "jmp 2b",
            "3:", "mov ecx, 77",
            "pushfq", "pop rsi", "cld",
            "movq rdi, xmm9",
            inout("rax") 0x1111_2222_3333_4444u64 => a,
            inout("rcx") 3_000_000u64 => c,
            inout("rdx") 3u64 => d,
            out("rsi") flags,
            out("rdi") x,
            inout("r8") 8u64 => r8,
            inout("r9") 0xfedc_ba98_7654_3210u64 => r9,
            inout("r10") 10u64 => r10,
            inout("r11") 11u64 => r11,
            inout("r12") 12u64 => r12,
            inout("r13") 0x8000_0000u64 => r13,
            inout("r14") u64::MAX => r14,
            inout("r15") 15u64 => r15,
            out("xmm9") _,
        );
    }
    let got = [a, c, d, r8, r9, r10, r11, r12, r13, r14, r15, x];
    let want =
        [0x80, 77, 3, 8, 0xfedc_ba98_7654_3210, 10, 11, 12, 0x8000_0000, u64::MAX, 15, 0x1111_2222_3333_4444];
    // Carry, sign, direction, overflow of the `add`, and the carry of `stc`.
    if got != want || flags & 0xc81 != 0xc81 {
        return Err(format!("registers {got:x?} flags {flags:#x}"));
    }
    Ok(())
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn handler(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// A program whose threads wait for signals; reports how many it handled.
pub(crate) fn signals() -> ! {
    let handler: extern "C" fn(libc::c_int) = handler;
    // SAFETY: the handler only adds to an atomic.
    unsafe { libc::signal(libc::SIGRTMIN(), handler as libc::sighandler_t) };
    worker(0, 0, false, || {
        // SAFETY: pause takes nothing.
        let answer = unsafe { libc::pause() };
        expect("pause", answer.into(), -1, libc::EINTR)
    });
    worker(1, 0xffff_ffff_fffb_feff, false, || {
        let open = 0u64;
        let time = libc::timespec { tv_sec: 60, tv_nsec: 0 };
        let null: *mut libc::pollfd = std::ptr::null_mut();
        // SAFETY: a live time and mask, no descriptors.
        let answer = unsafe { libc::syscall(libc::SYS_ppoll, null, 0, &raw const time, &raw const open, 8) };
        expect("ppoll", answer, -1, libc::EINTR)
    });
    worker(2, 0, false, spin);
    let rounds = [0, 1].map(|index: usize| move || COUNTERS[index].load(Ordering::Relaxed));
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let _ = line.unwrap();
        let wrong = BAD.lock().unwrap().join("; ");
        let handled = HANDLED.load(Ordering::Relaxed);
        if wrong.is_empty() {
            println!("report: {handled} {} {} / 0", rounds[0](), rounds[1]());
        } else {
            println!("report: BAD {wrong}");
        }
    }
    std::process::exit(0)
}

/// As [`main`], under a filter that kills for getppid(2) and fails userfaultfd(2).
pub(crate) fn filtered() -> ! {
    let statement = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
    let nr = |nr: i64| u32::try_from(nr).unwrap();
    let mut program = [
        statement(0x20, 0, 0, 0),
        statement(0x15, 2, 0, nr(libc::SYS_getppid)),
        statement(0x15, 2, 0, nr(libc::SYS_userfaultfd)),
        statement(0x06, 0, 0, 0x7fff_0000),
        statement(0x06, 0, 0, 0x8000_0000),
        statement(0x06, 0, 0, 0x0005_0001),
    ];
    let filter = libc::sock_fprog { len: 6, filter: program.as_mut_ptr() };
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: a live program of the length given; flag 1 (TSYNC) puts it on every thread.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, 1, 1, &raw const filter) };
    assert_eq!(answer, 0);
    main()
}

/// The victim's main: never returns.
pub(crate) fn main() -> ! {
    let mut pipe = [0i32; 2];
    // SAFETY: room for the two descriptors.
    unsafe { libc::pipe(pipe.as_mut_ptr()) };
    let [reader, writer] = pipe;
    // SAFETY: a number in, a descriptor out.
    let epoll = unsafe { libc::epoll_create1(0) };
    let usr2 = 1u64 << (libc::SIGUSR2 - 1);
    let mut sent = 0u64;
    worker(0, 0, true, move || {
        // SAFETY: a live timespec, no remainder wanted.
        let answer = unsafe { libc::nanosleep(&nap(), std::ptr::null_mut()) };
        expect("nanosleep", answer.into(), 0, 0)?;
        // SAFETY: eight live bytes.
        let n = unsafe { libc::write(writer, (&raw const sent).cast(), 8) };
        sent += 1;
        expect("write", n.try_into().unwrap(), 8, 0)
    });
    worker(1, 1 << 9, true, || {
        let (word, time) = (0u32, nap());
        // SAFETY: a live futex word and timespec.
        let answer =
            unsafe { libc::syscall(libc::SYS_futex, &raw const word, 128, 0, &raw const time, 0, 0) };
        expect("futex", answer, -1, libc::ETIMEDOUT)
    });
    worker(2, 1 << 11, true, move || {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for the one event.
        let answer = unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 16) };
        stoppable("epoll_wait", answer.into(), 0, 0)
    });
    let mut seen = 0u64;
    worker(3, 0, false, move || {
        let mut value = 0u64;
        // SAFETY: eight live bytes.
        let n = unsafe { libc::read(reader, (&raw mut value).cast(), 8) };
        expect("read", n.try_into().unwrap(), 8, 0)?;
        if value != seen {
            return Err(format!("read {value}, not {seen}"));
        }
        seen += 1;
        Ok(())
    });
    worker(4, 0, false, spin);
    worker(5, usr2, true, move || {
        let (null, time) = (std::ptr::null_mut::<libc::siginfo_t>(), nap());
        // SAFETY: a live set and timespec; no information wanted.
        let answer =
            unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const usr2, null, &raw const time, 8) };
        stoppable("rt_sigtimedwait", answer, -1, libc::EAGAIN)
    });
    worker(6, 0, true, || {
        // SAFETY: no descriptors.
        let answer = unsafe { libc::poll(std::ptr::null_mut(), 0, 16) };
        expect("poll", answer.into(), 0, 0)
    });
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let _ = line.unwrap();
        let wrong = BAD.lock().unwrap().join("; ");
        if wrong.is_empty() {
            let counts: Vec<String> =
                COUNTERS.iter().map(|c| c.load(Ordering::Relaxed).to_string()).collect();
            println!("report: {} / {}", counts.join(" "), INTERRUPTED.load(Ordering::Relaxed));
        } else {
            println!("report: BAD {wrong}");
        }
    }
    std::process::exit(0)
}
