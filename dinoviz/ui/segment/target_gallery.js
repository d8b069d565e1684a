// Cards of the pictures in which the object was searched; the value is the key of the chosen one.
// element, props, trigger and watch are given by gradio.
const list = element.querySelector('.dv-targets')
let chosen = ''  // kept here, since an update of the items that is under way during a click resets the value
const source = path => `${window.gradio_config?.root ?? ''}/gradio_api/file=${path}`

function card() {
    const button = document.createElement('button')
    button.type = 'button'
    button.innerHTML = '<span class="dv-thumb"><img alt="" draggable="false"></span><span class="dv-badge"></span><span class="dv-name"></span>'
    button.addEventListener('click', () => {
        chosen = button.dataset.key
        choose()
        render()
    })
    return button
}

function choose() {
    props.value = chosen
    trigger('select')
}

function render() {
    const items = props.items ?? []
    if (chosen && props.value !== chosen && items.some(item => item.key === chosen)) choose()
    while (list.children.length > items.length) list.lastChild.remove()
    while (list.children.length < items.length) list.append(card())
    items.forEach((item, i) => {
        const button = list.children[i], image = button.querySelector('img')
        button.setAttribute('aria-pressed', item.key === props.value)
        if (item.state === 'pending' && button.dataset.key === item.key) return  // unchanged until its result comes
        button.dataset.key = item.key
        button.dataset.state = item.state
        button.title = item.caption ? `${item.name}: ${item.caption}` : item.name
        button.disabled = !item.image
        image.hidden = !item.image
        if (item.image && image.getAttribute('src') !== source(item.image)) image.src = source(item.image)
        button.querySelector('.dv-badge').textContent = item.caption ?? ''
        button.querySelector('.dv-name').textContent = item.name
    })
}

watch(['items', 'value'], render)
render()
