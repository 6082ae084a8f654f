//! Finds a signal on a ring from a blurred measurement of it: least squares by gradient descent with momentum.
use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_void};

/// The fields of gdm_momentum_args, in the header's order.
#[repr(C)]
struct MomentumArgs {
    size: usize,
    lr: f64,
    momentum: f64,
    dampening: f64,
    weight_decay: f64,
    nesterov: c_int,
    maximize: c_int,
    decoupled_weight_decay: c_int,
    form: c_int,
    lr_scale: *const c_void,
}

#[link(name = "gdm", kind = "static")]
extern "C" {
    fn gdm_momentum_f32(
        param: *mut f32, velocity: *mut f32, grad: *const f32, n: usize, args: *const MomentumArgs,
    ) -> c_int;
    fn gdm_strerror(status: c_int) -> *const c_char;
}

/// Safe: the slices are as long as each other, and the borrow checker keeps them apart.
fn momentum(param: &mut [f32], velocity: &mut [f32], grad: &[f32], args: &MomentumArgs) -> Result<(), String> {
    assert!(velocity.len() == param.len() && grad.len() == param.len());
    assert!(args.lr_scale.is_null());
    unsafe {
        match gdm_momentum_f32(param.as_mut_ptr(), velocity.as_mut_ptr(), grad.as_ptr(), param.len(), args) {
            0 => Ok(()),
            status => Err(CStr::from_ptr(gdm_strerror(status)).to_string_lossy().into_owned()),
        }
    }
}

const N: usize = 64;

/// A linear map that is its own transpose.
fn blur(x: &[f32; N]) -> [f32; N] {
    std::array::from_fn(|i| 0.25 * x[(i + N - 1) % N] + x[i] + 0.25 * x[(i + 1) % N])
}

fn main() -> Result<(), String> {
    let measured = blur(&std::array::from_fn(|i| (i % 7) as f32));
    let (mut param, mut velocity) = ([0f32; N], [0f32; N]);
    let args = MomentumArgs {
        size: std::mem::size_of::<MomentumArgs>(),
        lr: 0.1,
        momentum: 0.9,
        dampening: 0.0,
        weight_decay: 1e-4,
        nesterov: 1,
        maximize: 0,
        decoupled_weight_decay: 0,
        form: 0,
        lr_scale: std::ptr::null(),
    };
    for step in 0..=50 {
        let mut residual = blur(&param);
        let mut loss = 0.0;
        for (r, m) in residual.iter_mut().zip(&measured) {
            *r -= m;
            loss += 0.5 * f64::from(*r) * f64::from(*r);
        }
        if step % 10 == 0 {
            println!("loss {loss:e}");
        }
        momentum(&mut param, &mut velocity, &blur(&residual), &args)?;
    }
    for p in param {
        println!("param {p:e}");
    }
    Ok(())
}
