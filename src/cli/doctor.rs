//! `smooth-probe doctor`: what this machine is, and whether the kernels compute what they should on it.

use super::{device, progress};
use crate::doctor::finding::{Finding, remedy};
use crate::doctor::{Machine, check_kernels};
use crate::kernels::{Deviation, KernelCheck};
use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The device to look at and to check every kernel on: auto, cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> Result<()> {
    let device = device::open(&args.device).map_err(|error| match remedy(&args.device) {
        // Tensor errors carry a backtrace after their first line.
        Some(remedy) => anyhow!("{}; {remedy}", format!("{error:#}").lines().next().unwrap_or_default()),
        None => error,
    })?;
    let machine = Machine::examine(&device)?;
    if !args.json {
        print_machine(&machine);
        print_heading();
    }
    let waiting = args.json.then(|| progress::waiting("checking every kernel and its gradient"));
    let checks = check_kernels(&device, |check| {
        if !args.json {
            print_check(check);
        }
    });
    drop(waiting);
    let findings = machine.findings(&checks);
    let failed = findings.iter().filter(|finding| finding.is_failure()).count();
    if args.json {
        print_json(&machine, &checks, &findings);
    } else {
        print_findings(&findings, checks.len(), failed);
    }
    if failed > 0 {
        bail!("{failed} of {} kernel checks failed on --device {}", checks.len(), args.device);
    }
    Ok(())
}

fn print_machine(machine: &Machine) {
    let Machine { processor, memory, device, hub, .. } = machine;
    let unknown = || "unknown".to_owned();
    let size = |bytes: Option<u64>| bytes.map_or_else(unknown, gigabytes);
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    say!("program    smooth-probe {}, features: {}", machine.version, machine.features.join(", "));
    say!(
        "processor  {}, {} cores, {} threads used",
        processor.name.clone().unwrap_or_else(unknown),
        processor.cores,
        processor.threads
    );
    say!("vectors    {} in row kernels, {} in matrix products", processor.row_kernels, processor.products);
    say!("memory     {}, {} available", size(memory.total), size(memory.available));
    let mut parts = vec![device.device.clone()];
    parts.extend(device.name.clone());
    parts.extend(device.driver.map(|(major, minor)| format!("driver for CUDA {major}.{minor}")));
    parts.extend(device.compute_capability.map(|(major, minor)| format!("compute capability {major}.{minor}")));
    parts.extend(device.memory.map(|bytes| format!("{}, {} free", gigabytes(bytes), size(device.free))));
    say!("device     {}", parts.join(", "));
    let rates: Vec<String> =
        machine.products.iter().map(|rate| format!("{} {:.0} GFLOP/s", rate.dtype, rate.gflops)).collect();
    say!("products   {}", rates.join(", "));
    say!("hub        {}, token: {}, offline: {}", hub.endpoint, yes(hub.token), yes(hub.offline));
    let there = if hub.exists { "" } else { " (not there yet)" };
    say!("cache      {}{there}, {} free, writable: {}", hub.folder.display(), size(hub.free), yes(hub.writable));
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

fn print_heading() {
    say!(
        "\nlargest deviation (tolerance there) of the value from its formula, of the gradient from differences of the"
    );
    say!("kernel on this device, and of the gradient from differences of the formula\n");
    say!("{:24} {:9} {:4}  {:17}  {:17}  {:17}  {:>6}", "kernel", "", "type", "value", "gradient", "to formula", "ms");
}

fn print_check(check: &KernelCheck) {
    let told = |deviation: &Option<Deviation>| match deviation {
        Some(deviation) => format!("{:7.1e} ({:.1e})", deviation.largest, deviation.tolerance),
        None => "-".to_owned(),
    };
    let (value, gradient, formula) = match &check.error {
        Some(error) => (error.clone(), String::new(), String::new()),
        None => (told(&Some(check.value)), told(&check.gradient), told(&check.formula)),
    };
    let verdict = if check.passed() { "ok" } else { "FAILED" };
    say!(
        "{:24} {:9} {:4}  {value:17}  {gradient:17}  {formula:17}  {:6.1}  {verdict}",
        check.kernel,
        check.form,
        check.dtype.as_str(),
        check.seconds * 1e3
    );
}

fn print_findings(findings: &[Finding], checks: usize, failed: usize) {
    say!("");
    for finding in findings {
        let kind = if finding.is_failure() { "failed" } else { "advice" };
        say!("{kind}     {finding}");
    }
    match failed {
        0 => say!("result     all {checks} checks passed"),
        _ => say!("result     {failed} of {checks} checks FAILED"),
    }
}

fn print_json(machine: &Machine, checks: &[KernelCheck], findings: &[Finding]) {
    let told = |deviation: &Option<Deviation>| {
        deviation.map(|deviation| json!({"largest": deviation.largest, "tolerance": deviation.tolerance}))
    };
    let kernels: Vec<Value> = checks
        .iter()
        .map(|check| {
            json!({
                "kernel": check.kernel,
                "form": check.form,
                "dtype": check.dtype.as_str(),
                "value": told(&Some(check.value)),
                "gradient": told(&check.gradient),
                "gradient_to_formula": told(&check.formula),
                "error": check.error,
                "milliseconds": check.seconds * 1e3,
                "passed": check.passed(),
            })
        })
        .collect();
    let findings: Vec<Value> =
        findings.iter().map(|finding| json!({"failure": finding.is_failure(), "text": finding.to_string()})).collect();
    let passed = checks.iter().all(KernelCheck::passed);
    let value = json!({"machine": machine, "kernels": kernels, "findings": findings, "passed": passed});
    say!("{value:#}");
}
