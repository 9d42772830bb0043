from torch import nn


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.net = nn.Sequential(
            nn.Linear(C, 4 * C, bias=config.bias), nn.GELU(), nn.Linear(4 * C, C, bias=config.bias)
        )

    def forward(self, x):
        return self.net(x)
