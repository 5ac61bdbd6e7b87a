"""An animatable head from photographs: texture, glTF with morph targets, turntable."""
