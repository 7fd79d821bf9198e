"""How messages name what came."""


def kind(x: object) -> str:
    """Return the name of the class of `x` for a message; classes of this package as users import them."""
    module = type(x).__module__
    if module.startswith("cusink."):
        bridge = module.split(".")[1]
        module = f"cusink.{bridge}" if bridge in ("torch", "jax") else "cusink"
    return f"{module}.{type(x).__qualname__}".removeprefix("builtins.")
