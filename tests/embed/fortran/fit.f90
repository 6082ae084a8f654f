! Finds a signal on a ring from a blurred measurement of it: least squares by gradient descent with momentum.
module gdm
  use, intrinsic :: iso_c_binding
  implicit none

  type, bind(c) :: momentum_args  ! the fields of gdm_momentum_args, in the header's order
    integer(c_size_t) :: size = 0
    real(c_double) :: lr = 0, momentum = 0, dampening = 0, weight_decay = 0
    integer(c_int) :: nesterov = 0, maximize = 0, decoupled_weight_decay = 0, form = 0
    type(c_ptr) :: lr_scale = c_null_ptr
  end type

  interface
    integer(c_int) function momentum_f32(param, velocity, grad, n, args) bind(c, name="gdm_momentum_f32")
      import
      real(c_float), intent(inout) :: param(*), velocity(*)
      real(c_float), intent(in) :: grad(*)
      integer(c_size_t), value :: n
      type(momentum_args), intent(in) :: args
    end function
  end interface
end module

program fit
  use gdm
  implicit none
  integer, parameter :: n = 64, steps = 50
  real(c_float) :: measured(n), residual(n), param(n) = 0, velocity(n) = 0
  real(c_double) :: loss
  type(momentum_args) :: args
  integer :: i, step

  measured = blur([(real(mod(i, 7), c_float), i = 0, n - 1)])
  args = momentum_args(lr=0.1d0, momentum=0.9d0, weight_decay=1d-4, nesterov=1)
  args%size = c_sizeof(args)
  do step = 0, steps
    residual = blur(param) - measured
    if (mod(step, 10) == 0) then
      loss = 0
      do i = 1, n
        loss = loss + 0.5d0 * real(residual(i), c_double) * residual(i)
      end do
      print '("loss ", es24.16e3)', loss
    end if
    if (momentum_f32(param, velocity, blur(residual), int(n, c_size_t), args) /= 0) error stop "gdm: bad arguments"
  end do
  print '("param ", es16.8)', param

contains

  function blur(x) result(out)  ! a linear map that is its own transpose
    real(c_float), intent(in) :: x(n)
    real(c_float) :: out(n)
    out = 0.25 * cshift(x, -1) + x + 0.25 * cshift(x, 1)
  end function
end program
