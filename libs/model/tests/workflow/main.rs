//! Random workflows with random histories, watched by a checker that knows the rules in another way.
//!
//! The checker sees what an outsider sees, the events, and holds them against the promises R-8 … R-14. It looks at
//! the whole graph, which [`decide`](gantry_model::workflow::decide) never does. `GANTRY_HISTORIES` says how many
//! histories are tried (default 100000), `GANTRY_SEED` repeats a run.

mod history;
mod mutants;

use gantry_model::workflow::Sound;
use history::{Case, Seen, histories, runner, tree::Histories};
use proptest::test_runner::TestError;
use std::{
    sync::Mutex,
    time::{Instant, SystemTime},
};

fn seed() -> u64 {
    std::env::var("GANTRY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos() & 0xffff_ffff).unwrap_or_default()
    })
}

#[test]
fn r8_to_r14_hold_in_every_history() {
    let total: u32 = std::env::var("GANTRY_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let threads = u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1);
    let (seed, started) = (seed(), Instant::now());
    let sum = Mutex::new(Seen::default());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let sum = &sum;
            scope.spawn(move || {
                let share = total / threads + u32::from(thread < total % threads);
                let own = Mutex::new(Seen::default());
                let result = runner(seed ^ u64::from(thread) << 40, share).run(&Histories, |case: Case| {
                    let seen = histories::check::<Sound>(&case)?;
                    own.lock().unwrap().add(&seen);
                    Ok(())
                });
                sum.lock().unwrap().add(&own.into_inner().unwrap());
                match result {
                    Ok(()) => {}
                    Err(TestError::Fail(why, case)) => panic!("{why}\nGANTRY_SEED={seed}\n{case:#?}"),
                    Err(TestError::Abort(why)) => panic!("{why}"),
                }
            });
        }
    });
    let seen = sum.into_inner().unwrap();
    println!("{total} histories in {:.1} s, GANTRY_SEED={seed}\n{seen}", started.elapsed().as_secs_f64());
    if total >= 1000 {
        seen.assert_spread();
    }
}
