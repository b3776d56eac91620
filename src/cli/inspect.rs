//! `smooth-probe inspect`: the plan, before anyone trains.

use super::open;
use crate::hub;
use crate::model::gguf::Gguf;
use crate::model::weights::Weights;
use crate::model::{Architecture, EMBEDDED, Head, ModelError, families};
use crate::peft::{Arm, Method, Mixing, PeftConfig, Plan};
use crate::train::{MethodName, TrainConfig};
use anyhow::Result;
use candle_core::{DType, Device};
use clap::Args;
use serde_json::json;

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A hub name, a folder, a GGUF file, or `embedded`.
    #[arg(long)]
    model: String,
    /// A hub revision.
    #[arg(long)]
    revision: Option<String>,
    /// Also show the plan of this method.
    #[arg(long)]
    method: Option<MethodName>,
    /// Linears that get a module, by name; by default those of the released code.
    #[arg(long, value_delimiter = ',')]
    targets: Vec<String>,
    /// LoRA's rank.
    #[arg(long, default_value_t = 32)]
    rank: usize,
    /// LoRA's alpha; by default twice the rank.
    #[arg(long)]
    alpha: Option<f64>,
    /// The adapter's inner width.
    #[arg(long, default_value_t = 256)]
    bottleneck: usize,
    /// Lambda of the initial residual; 0 is vanilla.
    #[arg(long, default_value_t = 0.0)]
    sibo_lambda: f64,
    /// Which modules receive it: official (as released) or all (the paper's formula).
    #[arg(long, default_value = "official")]
    sibo_policy: crate::peft::Policy,
    /// What the lambda term reads: h0, none, h0-normed, shuffled, random.
    #[arg(long, default_value = "h0")]
    residual: Arm,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let (architecture, unread) = architecture(args)?;
    let config = TrainConfig {
        method: args.method.unwrap_or(MethodName::Full),
        targets: args.targets.clone(),
        rank: args.rank,
        alpha: args.alpha,
        bottleneck: args.bottleneck,
        sibo_lambda: args.sibo_lambda,
        sibo_policy: args.sibo_policy,
        residual: args.residual,
        ..TrainConfig::default()
    };
    if args.method.is_some() {
        config.check()?;
    }
    let peft = config.peft(&architecture);
    let plan = match &peft {
        Some(peft) => Some(Plan::new(&architecture, peft)?),
        None => None,
    };
    if args.json {
        print_json(args, &architecture, &unread, peft.as_ref().zip(plan.as_ref()));
    } else {
        print_text(args, &architecture, &unread, peft.as_ref().zip(plan.as_ref()));
    }
    Ok(())
}

/// Reads the configuration and the weights' names alone: inspecting a 7 B model must not load it. Second the tensors of
/// the file that are not read.
fn architecture(args: &InspectArgs) -> Result<(Architecture, Vec<String>)> {
    if args.model == EMBEDDED {
        let model = open::model(EMBEDDED, None, DType::F32.into(), &Device::Cpu)?;
        return Ok((model.transformer.architecture().clone(), Vec::new()));
    }
    let files = hub::resolve(&args.model, args.revision.as_deref(), &open::hub_settings())?;
    let Some(path) = &files.gguf else {
        let architecture = families::read_config(&files.folder)?;
        // A configuration can be looked at before its weights are there.
        return Ok(match Weights::open(&files.folder) {
            Ok(weights) => {
                let architecture = architecture.of_file(&weights);
                let unread = architecture.unread(&weights);
                (architecture, unread)
            }
            Err(_) => (architecture, Vec::new()),
        });
    };
    let gguf = Gguf::open(path).map_err(ModelError::from)?;
    let config = gguf.config_json().map_err(ModelError::from)?;
    let architecture = families::parse_config(&path.display().to_string(), &config)?.of_file(&gguf);
    let unread = architecture.unread(&gguf);
    Ok((architecture, unread))
}

fn print_text(args: &InspectArgs, a: &Architecture, unread: &[String], plan: Option<(&PeftConfig, &Plan)>) {
    say!("model       {} ({})", args.model, a.family);
    say!("weights     {}", thousands(a.parameter_count()));
    say!(
        "shape       {} layers, width {}, {} heads of {} ({} key/value), feed-forward {}{}, {} head",
        a.layers,
        a.hidden_size,
        a.heads,
        a.head_dim,
        a.kv_heads,
        a.intermediate_size,
        if a.patches.is_some() { String::new() } else { format!(", vocabulary {}", a.vocab_size) },
        a.head
    );
    if let Some(grid) = &a.patches {
        let ([tall, wide], [high, broad]) = (grid.image, grid.patch);
        say!(
            "images      {tall} × {wide} pixels in {} patches of {high} × {broad}, behind a class token",
            grid.patches()
        );
    }
    say!("h0          {} (what the initial residual would mix in)", a.h0_kind);
    let theirs = match a.has_final_norm() {
        true => format!("l < {l}, and hidden_states[{l}] is layer {l} after the final norm", l = a.layers),
        false => "every l: there is no final norm".to_owned(),
    };
    say!("layers      0 = embedding, 1..{} = blocks; transformers' hidden_states[l] is layer l for {theirs}", a.layers);
    if !unread.is_empty() {
        let shown = unread.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if unread.len() > 4 { format!(" and {} more", unread.len() - 4) } else { String::new() };
        say!("unread      {shown}{more}: not needed for hidden states");
    }
    let Some((config, plan)) = plan else { return };
    say!("\nmethod      {}, scale {}", config.method, config.method.scale());
    match &config.residual {
        None => say!("residual    none: vanilla"),
        Some(r) => say!(
            "residual    x~ = (1-{l})*x + {l}*r, r = {}, policy {}: mixed into {} of {} modules",
            r.arm,
            r.policy,
            plan.mixed(),
            plan.modules.len(),
            l = r.lambda
        ),
    }
    let share = 100.0 * plan.trainable() as f64 / a.parameter_count() as f64;
    say!("trainable   {} ({share:.2} % of the weights)\n", thousands(plan.trainable()));
    if !plan.modules.is_empty() {
        let width = plan.modules.iter().map(|m| m.path.len()).max().unwrap_or(0);
        say!("{:width$}  {:>13}  {:>10}  h0 mixed in", "module", "reads->writes", "trainable");
        for module in &plan.modules {
            let shape = format!("{}->{}", module.input, module.output);
            say!("{:width$}  {shape:>13}  {:>10}  {}", module.path, module.trainable, module.residual);
        }
    }
    for tensor in &plan.base {
        say!("{}  {:?}  of the model itself", tensor.model, tensor.shape);
    }
    say!("\ndeployment  {}", deployment(config, plan));
}

/// Whether the trained modules can be merged into the base weights.
fn deployment(config: &PeftConfig, plan: &Plan) -> String {
    let residual = config.residual.filter(|_| plan.modules.iter().any(|m| m.residual == Mixing::Mixed));
    let lambda = residual.map_or(0.0, |r| r.lambda);
    match (config.method, residual) {
        (Method::Prefix { .. } | Method::Prompt { .. }, _) => {
            "virtual tokens are no part of any weight: they stand in front of every text".to_owned()
        }
        (Method::BitFit | Method::Norms, _) => "whole tensors of the model: they stand in for its own".to_owned(),
        (Method::Adapter { .. }, _) => {
            "an adapter is not linear in its input: it cannot be merged into the base weights, with or without SIBO"
                .to_owned()
        }
        (Method::Ia3, None) => "mergeable: W' = W0 with its rows or columns times l (bias and rows alike)".to_owned(),
        (Method::Dora { .. }, None) => "mergeable: W' = (m/|V|)*V, V = W0 + (alpha/r)*B*A".to_owned(),
        (Method::Lora { .. }, None) => "mergeable: W' = W0 + (alpha/r)*B*A".to_owned(),
        (Method::Dora { .. }, Some(_)) => {
            "cannot be merged: m/|V| rescales a term that depends on the token beside the linear".to_owned()
        }
        (Method::Ia3, Some(r)) => format!(
            "cannot be merged whole: {lambda}*(l-1)*r, r = {}, depends on the token and is no linear function of x",
            r.arm
        ),
        (Method::Lora { .. }, Some(r)) if r.arm == Arm::None => {
            format!("mergeable: the control reads (1-{lambda})*x, so W' = W0 + (1-{lambda})*(alpha/r)*B*A where mixed")
        }
        (Method::Lora { .. }, Some(r)) if r.arm == Arm::Random => format!(
            "mergeable with a bias: W' = W0 + (1-{lambda})*(alpha/r)*B*A, and {lambda}*(alpha/r)*B*A*r is one constant \
             vector"
        ),
        (Method::Lora { .. }, Some(r)) => format!(
            "cannot be merged whole: {lambda}*(alpha/r)*B*A*r, r = {arm}, depends on the token and is no linear function \
             of x. Exact in part: W' = W0 + (1-{lambda})*(alpha/r)*B*A, with the rank-r term kept beside it",
            arm = r.arm
        ),
    }
}

fn print_json(args: &InspectArgs, a: &Architecture, unread: &[String], plan: Option<(&PeftConfig, &Plan)>) {
    let mut value = json!({
        "model": args.model,
        "family": a.family,
        "weights": a.parameter_count(),
        "layers": a.layers,
        "hidden_size": a.hidden_size,
        "heads": a.heads,
        "kv_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "intermediate_size": a.intermediate_size,
        "vocab_size": a.vocab_size,
        "tied_head": a.head == Head::Tied,
        "final_norm": a.has_final_norm(),
        "h0": a.h0_kind,
        "unread": unread,
    });
    if let (Some((config, plan)), Some(object)) = (plan, value.as_object_mut()) {
        let modules: Vec<_> = plan
            .modules
            .iter()
            .map(|m| {
                json!({
                    "path": m.path,
                    "reads": m.input,
                    "writes": m.output,
                    "trainable": m.trainable,
                    "position": m.position.to_string(),
                    "scale": m.form.scale(),
                    "h0_mixed": m.residual == Mixing::Mixed,
                    "reason": m.residual.to_string(),
                })
            })
            .collect();
        object.insert("trainable".to_owned(), json!(plan.trainable()));
        object.insert("scale".to_owned(), json!(config.method.scale()));
        object.insert("modules".to_owned(), json!(modules));
        let base: Vec<&str> = plan.base.iter().map(|tensor| tensor.model.as_str()).collect();
        object.insert("of_the_model".to_owned(), json!(base));
        let residual = config
            .residual
            .map(|r| json!({"lambda": r.lambda, "policy": r.policy, "residual": r.arm, "h0": r.h0_kind}));
        object.insert("residual".to_owned(), json!(residual));
        object.insert("deployment".to_owned(), json!(deployment(config, plan)));
    }
    say!("{value:#}");
}

/// A number with its thousands set apart.
pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_set_apart() {
        let all = [(7, "7"), (1234, "1,234"), (14_024_704, "14,024,704"), (123, "123")];
        all.iter().for_each(|(n, text)| assert_eq!(&super::thousands(*n), text));
    }
}
