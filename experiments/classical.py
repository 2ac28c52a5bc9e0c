"""Classical generative models: fit, evaluate and picture one of them.

python experiments/classical.py gmm
python experiments/classical.py gmm --data fashion_mnist --num-components 100
python experiments/classical.py hmm
python experiments/classical.py markov
"""

from jaxgen.classical import gmm, hmm, markov
from jaxgen.experiment import Options, System, main

SYSTEMS = {
    "gmm": System(
        family=gmm,
        config=gmm.Config(num_components=30, regularization=1e-2),
        paper="Dempster, Laird & Rubin 1977; stepwise EM of Cappé & Moulines 2009",
        options=Options(steps=300, batch_size=1024, sample_every=100, save_every=100),
    ),
    "hmm": System(
        family=hmm,
        config=hmm.Config(num_states=3),
        paper="Baum et al. 1970; stepwise EM of Cappé 2011",
        options=Options(data="weather", steps=500, sample_every=0),
    ),
    "markov": System(
        family=markov,
        config=markov.Config(),
        paper="Markov 1913",
        options=Options(data="weather", steps=40, batch_size=100, log_every=10, sample_every=40),
    ),
}

if __name__ == "__main__":
    main(SYSTEMS)
