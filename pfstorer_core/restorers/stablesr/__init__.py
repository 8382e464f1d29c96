"""The StableSR family: its encoder, SFT, CFW fusion and checkpoint layouts."""
