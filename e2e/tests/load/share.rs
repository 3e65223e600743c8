//! Work is taken by both processes of each service; where one leads, the other takes over.

use crate::world::{PROBE, World};
use anyhow::{Context, ensure};
use gantry_e2e::{ledger::Fan, until};
use std::time::{Duration, Instant};

/// Of what a service did, each of its processes did so much at least.
const SHARE: f64 = 0.2;
const FAN: Fan = Fan { jobs: 5, lines: 5, between: "true", class: None, more: ("", "") };

/// What a service's processes count of work that any of them takes: metric, and labels.
const COUNTS: [(&str, &str, &str); 8] = [
    ("api", "gantry_http_requests", "listener=\"public\""),
    ("domain", "gantry_bus_answered", ""),
    ("permissions", "gantry_bus_answered", ""),
    ("pipelines", "gantry_bus_handled", ""),
    ("contexts", "gantry_http_requests", "listener=\"agents\""),
    ("dispatcher", "gantry_http_requests", "listener=\"agents\""),
    ("output-processor", "gantry_output_processor_bytes", ""),
    ("output-processor", "gantry_bus_answered", ""),
];
/// Services that handle events of a source in batches, which one process of them does at a time; another takes over.
const LED: [&str; 5] = ["conductor", "dispatcher", "scheduler", "test-results", "projector"];
/// Too little to be shared.
const ENOUGH: f64 = 20.0;
/// Nobody need ask it anything: whoever asks for permissions remembers the answers for a while.
const QUIET: [&str; 1] = ["permissions"];
/// A process that was killed is known to be gone.
const TAKEN_OVER: Duration = Duration::from_secs(60);

pub async fn work_is_shared(world: &World) -> anyhow::Result<()> {
    let before = counts(world).await?;
    let begun = Instant::now();
    let load = world.push("share", &FAN, world.pick(10, 40)).await?;
    world.judge(&load, 0).await?;
    let (jobs, took) = (load.projects.len() * FAN.jobs, begun.elapsed().as_secs_f64());
    println!("  {jobs} jobs in {took:.1} s, {:.1} a second", jobs as f64 / took);
    let after = counts(world).await?;
    let mut unfair = Vec::new();
    for (((role, metric, _), before), after) in COUNTS.iter().zip(before).zip(after) {
        let done: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let sum: f64 = done.iter().sum();
        let least = done.iter().copied().fold(f64::INFINITY, f64::min) / sum.max(1.0);
        println!("  {role:<16} {metric:<30} {done:?}, the lesser share is {:.0} %", least * 100.0);
        if sum >= ENOUGH && least < SHARE {
            unfair.push(format!("{role} by {metric}: {done:?}"));
        }
        if sum == 0.0 && !QUIET.contains(role) {
            unfair.push(format!("{role} counts nothing as {metric}"));
        }
    }
    ensure!(unfair.is_empty(), "work is not shared: {}", unfair.join("; "));
    take_over(world).await
}

async fn counts(world: &World) -> anyhow::Result<Vec<Vec<f64>>> {
    let services = world.stack.services()?;
    let mut all = Vec::new();
    for (role, metric, labels) in COUNTS {
        let names = services.get(role).with_context(|| format!("there is no {role}"))?;
        ensure!(names.len() == 2, "{role} has {} processes", names.len());
        let mut counts = Vec::new();
        for name in names {
            counts.push(world.stack.counted(name, metric, labels).await?);
        }
        all.push(counts);
    }
    Ok(all)
}

/// Whoever did most of what is led is killed, in all services at once; the others go on where they stood.
async fn take_over(world: &World) -> anyhow::Result<()> {
    let stack = &world.stack;
    let (mut killed, mut heirs) = (Vec::new(), Vec::new());
    for role in LED {
        let names = stack.of(role)?;
        let mut handled = Vec::new();
        for name in &names {
            handled.push(stack.counted(name, "gantry_bus_handled", "").await?);
        }
        let leads = usize::from(handled[1] > handled[0]);
        println!("  {role:<16} is led, source by source: {handled:?} handled; {} is killed", names[leads]);
        killed.push(names[leads].clone());
        heirs.push((names[1 - leads].clone(), handled[1 - leads]));
    }
    for name in &killed {
        stack.stop(name, "KILL").await?;
    }
    let begun = Instant::now();
    // A job comes to its end, and the judge reads views, without those that led.
    let load = world.push("led", &PROBE, 1).await?;
    world.judge(&load, 0).await?;
    let took = begun.elapsed().as_secs_f64();
    for (name, before) in &heirs {
        until(&format!("{name} handles what the other did"), TAKEN_OVER, || async {
            let now = stack.counted(name, "gantry_bus_handled", "").await?;
            Ok((now > *before).then_some(()))
        })
        .await?;
    }
    println!("  without them a push led to a job's end after {took:.1} s");
    for name in &killed {
        stack.start(name).await?;
        stack.ready(name).await?;
    }
    Ok(())
}
