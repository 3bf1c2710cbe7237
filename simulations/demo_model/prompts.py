"""How a story is asked for: the chat form of a training text, and the words a request may be about.

Half of the times a story is read, it is read as the answer to a request: "Tell a story about a frog." The request
names the title, or something that the story really is about (a word of `SUBJECTS` that it uses at least twice). The
model learns to answer requests of this form and no others; the card says so.
"""

import random
import re

from shoal.simulations.demo_model.corpus import Document

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
SPECIAL_TOKENS = (BOS, EOS, PAD, USER, ASSISTANT)
"""DeepSeek's spelling; their ids are 0, 1, 2, 3, 4 in this order."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + (message['content'] or '') }}"
    "{% if message['tool_calls'] %}{{ '<｜tool▁calls▁begin｜>' }}{% for tool in message['tool_calls'] %}"
    "{{ '<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' }}"
    "{{ tool['function']['arguments'] + '<｜tool▁call▁end｜>' }}"
    "{% endfor %}{{ '<｜tool▁calls▁end｜>' }}{% endif %}{{ '<｜end▁of▁sentence｜>' }}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% if thinking %}{{ '<think>' }}{% endif %}{% endif %}"
)
"""DeepSeek-V3's turns, and V3.1's tool calls and thinking, so that programs which use those can be tried. The model has
read neither: it makes up stories inside them."""

CHAT_SHARE = 0.5
"""Share of a story's readings that are in chat form."""

ABOUT = {
    "en": "Tell a story about {}.",
    "es": "Cuenta un cuento sobre {}.",
    "pt": "Conta uma história sobre {}.",
    "fr": "Raconte une histoire sur {}.",
    "sw": "Simulia hadithi kuhusu {}.",
}
"""A request for a subject."""

TITLED = {
    "en": "Tell the story “{}”.",
    "es": "Cuenta el cuento «{}».",
    "pt": "Conta a história «{}».",
    "fr": "Raconte l’histoire « {} ».",
    "sw": "Simulia hadithi “{}”.",
}
"""A request for a title; other languages ask with the title alone."""

SUBJECTS = {
    "en": (
        "a frog,a dog,a cat,a hen,a chicken,a rooster,a cow,a goat,a sheep,a donkey,a horse,a lion,a leopard,"
        "an elephant,a monkey,a rabbit,a hare,a hyena,a tortoise,a crocodile,a snake,a bird,a fish,a mouse,"
        "a rat,a pig,a zebra,a spider,a butterfly,an ant,a bee,a tiger,a crow,a fox,a jackal,a giraffe,"
        "a hippo,a snail,a squirrel,a bear,a girl,a boy,a mother,a father,a grandmother,a grandfather,a baby,"
        "a brother,a sister,a friend,a king,a queen,a farmer,a teacher,a doctor,an old man,an old woman,"
        "a hunter,a thief,a tree,a river,a house,a school,a market,a village,a garden,a mountain,a forest,"
        "the sea,the moon,the sun,the rain,the wind,the stars,a bicycle,a ball,a book,a boat,a train,a car,"
        "a bus,a drum,a song,a dress,a hat,a kite,a cake,a mango,a banana,maize,honey"
    ),
    "es": (
        "una rana,un perro,un gato,una gallina,un gallo,una vaca,una cabra,un burro,un león,un leopardo,un elefante,"
        "un mono,un conejo,una liebre,una hiena,una tortuga,un cocodrilo,una serpiente,un pájaro,un pez,un ratón,"
        "una niña,un niño,una madre,un padre,una abuela,un abuelo,un hermano,una hermana,un amigo,un rey,un árbol,"
        "un río,una casa,una escuela,una aldea,la luna,el sol,la lluvia,un caballo,una bicicleta,una pelota"
    ),
    "pt": (
        "um sapo,uma rã,um cão,um cachorro,um gato,uma galinha,um galo,uma vaca,uma cabra,um burro,um leão,um leopardo,"
        "um elefante,um macaco,um coelho,uma lebre,uma hiena,uma tartaruga,um crocodilo,uma cobra,um pássaro,um peixe,"
        "um rato,uma menina,um menino,uma mãe,um pai,uma avó,um avô,um irmão,uma irmã,um amigo,um rei,uma árvore,"
        "um rio,uma casa,uma escola,uma aldeia,a lua,o sol,a chuva,um cavalo,uma bicicleta,uma bola"
    ),
    "fr": (
        "une grenouille,un chien,un chat,une poule,un coq,une vache,une chèvre,un âne,un lion,un léopard,un éléphant,"
        "un singe,un lapin,un lièvre,une hyène,une tortue,un crocodile,un serpent,un oiseau,un poisson,une souris,"
        "une fille,un garçon,une mère,un père,une grand-mère,un grand-père,un frère,une sœur,un ami,un roi,un arbre,"
        "une rivière,une maison,une école,un village,la lune,le soleil,la pluie,un cheval,un vélo,un ballon"
    ),
    "sw": (
        "chura,mbwa,paka,kuku,jogoo,ng'ombe,mbuzi,punda,simba,chui,tembo,ndovu,nyani,sungura,fisi,kobe,mamba,nyoka,"
        "ndege,samaki,panya,msichana,mvulana,mama,baba,bibi,babu,kaka,dada,rafiki,mfalme,mti,mto,nyumba,shule,kijiji,"
        "mwezi,jua,mvua,farasi,baiskeli,mpira"
    ),
}
"""Things stories are about, with their article, in the languages of `ABOUT`."""

MENTIONS = 2
"""How often a story must use a word to be about it."""


def subjects_of(story: Document) -> list[str]:
    """The subjects of `SUBJECTS` that the story is about, in the table's order."""
    known = SUBJECTS.get(story.language, "")
    words = re.findall(r"[\w'-]+", story.plain.lower())
    counts = {word: words.count(word) for word in set(words)}
    return [s for s in known.split(",") if s and counts.get(s.split()[-1], 0) >= MENTIONS]


def request_for(story: Document, rng: random.Random) -> str:
    """What a user might say to be told this story."""
    subjects = subjects_of(story)
    if subjects and rng.random() < 0.7:
        return ABOUT[story.language].format(rng.choice(subjects))
    return TITLED.get(story.language, "{}").format(story.title)


def as_chat(request: str) -> str:
    """The chat template's rendering of one user turn, up to where the answer begins."""
    return f"{BOS}{USER}{request}{ASSISTANT}"


def reading(document: Document, rng: random.Random) -> str:
    """One reading of a document, special tokens included: plain, or (stories only) as an answer."""
    if document.kind == "story" and rng.random() < CHAT_SHARE:
        return f"{as_chat(request_for(document, rng))}{document.text}{EOS}"
    return f"{BOS}{document.plain}{EOS}"
